"""The project's Markdown files, taken apart: links, anchors, blocks of code, what stands in backticks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Folders with files that are not ours, or not for reading.
_ELSEWHERE = frozenset({"build", "node_modules", "tests"})

_FENCE = re.compile(r"^\s*```+\s*([\w+-]*)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the number of its first line of code, and the code."""

    path: Path
    language: str
    line: int
    code: str

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every Markdown file of the project, hidden folders left out."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("*/**/*.md")]
    return sorted(path for path in found if not _is_elsewhere(path.relative_to(ROOT)))


def _is_elsewhere(path: Path) -> bool:
    return path.parts[0] in _ELSEWHERE or any(part.startswith(".") for part in path.parts)


def blocks(path: Path) -> Iterator[Block]:
    language: str | None = None
    code: list[str] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            code.append(line)
        elif language is None:
            language, code = fence.group(1), []
        else:
            yield Block(path, language, number - len(code), "\n".join(code))
            language = None
    assert language is None, f"{path.relative_to(ROOT)}: a fence is not closed"


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Lines outside of fenced blocks, with their numbers."""
    is_code = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            yield number, line


def links(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in prose(path):
        for target in _LINK.findall(_INLINE.sub("", line)):
            yield number, target


def inline_code(path: Path) -> Iterator[tuple[int, str]]:
    """What stands between single backticks, also where it runs over the end of a line."""
    lines = dict(prose(path))
    text = "\n".join(lines.get(number, "") for number in range(1, max(lines, default=0) + 1))
    for paragraph in re.finditer(r"(?:[^\n]+\n?)+", text):
        for found in _INLINE.finditer(paragraph.group()):
            number = text.count("\n", 0, paragraph.start() + found.start()) + 1
            yield number, " ".join(found.group(1).split())


def anchors(path: Path) -> set[str]:
    """What `#…` may name: headings as they are turned into anchors where the repository is browsed."""
    headings = [line.lstrip("#").strip() for _, line in prose(path) if re.match(r"#{1,6} ", line)]
    return {_slug(heading) for heading in headings}


def _slug(heading: str) -> str:
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
