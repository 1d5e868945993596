"""Examples in the documentation are at least well-formed: Python compiles, JSON and YAML can be read."""

from __future__ import annotations

import contextlib
import io
import json
import re
from itertools import pairwise

import pytest
import yaml
from docs_pages import ROOT, Block, blocks, inline_code, pages

from gpu_worker.engine.architectures import MODEL_TYPES

BLOCKS = [block for path in pages() for block in blocks(path)]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.mark.parametrize("block", of("python"), ids=lambda block: block.place)
def test_python_compiles(block: Block) -> None:
    compile(block.code, block.place, "exec")


def test_the_capacity_guide_prints_what_it_says() -> None:
    page = [block for block in BLOCKS if block.path.name == "capacity.md"]
    printed = 0
    for example, output in pairwise(page):
        if example.language == "python":
            printed += 1
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(example.code, example.place, "exec"), {})
            assert out.getvalue().splitlines() == output.code.splitlines(), example.place
    assert printed == 2


@pytest.mark.parametrize("block", of("json"), ids=lambda block: block.place)
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.code)


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.place)
def test_yaml_can_be_read(block: Block) -> None:
    list(yaml.safe_load_all(block.code))


def test_contributors_pages_name_what_the_code_has() -> None:
    """A class, function or field in backticks stands in the code under that very name."""
    sources = [path for path in ROOT.glob("*/**/*") if path.suffix in (".py", ".proto", ".cpp", ".h", ".hpp")]
    words = {
        word
        for path in sources
        if not path.relative_to(ROOT).parts[0].startswith((".", "build"))
        for word in re.findall(r"\w+", path.read_text())
    }
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {code}"
        for path in sorted((ROOT / "docs" / "contributors").glob("*.md"))
        for line, code in inline_code(path)
        if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\(…?\))?", code)
        # Settings are looked up elsewhere.
        if not code.startswith("FIRSTLIGHT_") and not set(re.findall(r"\w+", code)) <= words
    ]
    assert wrong == []


def test_the_guide_to_models_names_the_architectures_that_are_served() -> None:
    page = (ROOT / "docs" / "users" / "models.md").read_text()
    listed = page.partition("`model_type` of `config.json`):\n\n")[2].partition(".\n\n")[0]
    assert re.findall(r"`(\w+)`", listed) == sorted(MODEL_TYPES)
