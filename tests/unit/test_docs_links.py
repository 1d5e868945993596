"""Links of all Markdown files lead somewhere, and files that they name in backticks are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_pages import ROOT, anchors, inline_code, links, pages

PAGES = pages()
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)+\.(py|md|proto|ya?ml|json|toml|cpp|hpp|h|sh)")
# Of Prometheus: `firstlight_…` in small letters, and vLLM's.
_FIGURE = re.compile(r"(?:(?<![\w/.-])firstlight_|vllm:)[a-z_]+[a-z]")
# Made while something runs, or an example of a user's own.
_MADE = frozenset({".firstlight/run.json", "1_Pooling/config.json"})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    broken = [f"line {line}: {target}" for line, target in links(path) if not _leads_somewhere(path, target)]
    assert broken == []


def _leads_somewhere(path: Path, target: str) -> bool:
    if target.startswith(("https://", "http://", "mailto:")):
        return True
    name, _, anchor = target.partition("#")
    found = (path.parent / name) if name else path
    if not found.exists():
        return False
    return not anchor or (found.suffix == ".md" and anchor in anchors(found))


def test_the_site_names_each_page_once_and_none_that_is_not_there() -> None:
    named = re.findall(r"^ +- (?:\w+: )?([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(named) > 20
    assert [page for page in named if named.count(page) > 1 or not (ROOT / "docs" / page).exists()] == []


def test_files_named_in_backticks_are_there() -> None:
    # Shortened at the front where the room is plain: `domain/scheduler.py`.
    endings = {
        "/".join(path.parts[first:])
        for path in (found.relative_to(ROOT) for found in ROOT.glob("*/**/*.*"))
        if not path.parts[0].startswith(".")
        for first in range(len(path.parts))
    }
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {code}"
        for path in PAGES
        for line, code in inline_code(path)
        if _FILE.fullmatch(code) and code not in _MADE and code not in endings
        if not (ROOT / code).exists()
    ]
    assert missing == []


def test_figures_that_are_named_are_exposed() -> None:
    exposed = set(_FIGURE.findall((ROOT / "docs" / "operators" / "metrics.md").read_text()))
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in PAGES
        for name in sorted(set(_FIGURE.findall(path.read_text())) - exposed)
    ]
    assert missing == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set[Path](), [ROOT / "README.md", ROOT / "docs" / "index.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for _, target in links(page):
            found = (page.parent / target.partition("#")[0]).resolve()
            # A link to a folder is a link to all that lies there.
            ahead += sorted(found.glob("*.md")) if found.is_dir() else [found] if found.exists() else []
    left_out = [path for path in PAGES if path.is_relative_to(ROOT / "docs") and path not in reached]
    assert [str(path.relative_to(ROOT)) for path in left_out] == []
