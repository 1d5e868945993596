"""Links of all Markdown files lead somewhere, and files that they name in backticks are there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from docs_pages import ROOT, anchors, inline_code, links, pages

PAGES = pages()
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)+\.(py|md|proto|ya?ml|json|toml|cpp|hpp|h|sh)")
# Of Prometheus: `firstlight_…` in small letters, and vLLM's.
_FIGURE = re.compile(r"(?:(?<![\w/.-])firstlight_|vllm:)[a-z_]+[a-z]")
_HOST = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}")
# Reserved for examples, or of somebody's own network.
_NOT_PUBLIC = (".example", ".internal", ".invalid", ".lan", ".local", ".localhost", ".test")
# Made while something runs, or an example of a user's own.
_MADE = frozenset({".firstlight/run.json", "1_Pooling/config.json"})


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    broken = [f"line {line}: {target}" for line, target in links(path) if not _leads_somewhere(path, target)]
    assert broken == []


def _leads_somewhere(path: Path, target: str) -> bool:
    if target.startswith("https://"):
        return is_public(target)
    name, _, anchor = target.partition("#")
    found = (path.parent / name) if name else path
    if not found.exists():
        return False
    return not anchor or (found.suffix == ".md" and anchor in anchors(found))


def is_public(address: str) -> bool:
    """Whether it can be a page for everybody: https, a name in a public domain, and no more than a path.

    Whether somebody answers there, no test says that must pass without a network.
    """
    url = urlsplit(address)
    is_plain = url.scheme == "https" and url.netloc == url.hostname and url.query == ""
    return is_plain and bool(_HOST.fullmatch(url.netloc)) and not url.netloc.endswith(_NOT_PUBLIC)


def test_what_is_no_public_address_is_told_from_what_is() -> None:
    assert is_public("https://docs.example.org/a/b.html#c")
    for address in (
        "http://docs.example.org",
        "https://localhost/a",
        "https://127.0.0.1:8080/console",
        "https://me:secret@docs.example.org",
        "https://docs.example.org:8443",
        "https://registry.internal/simple",
        "https://",
        "file:///docs/index.md",
    ):
        assert not is_public(address), address


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
