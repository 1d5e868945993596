"""What the documentation's site needs beyond MkDocs; the files stay as they read in the repository.

- Pages that `nav` does not name are appended to their folder's section, decisions among them.
- Python-Markdown wants an empty line before a list or a table that follows a paragraph. Where the repository
  is browsed none is needed; it is added on the way, outside of code.
- A link that leaves `docs/` has no page on the site: it becomes the file's path, if there is such a file.
- A link to a folder of pages becomes one to its first.
"""

import logging
import os
import pathlib
import re

# MkDocs counts warnings of its own loggers when it is strict.
log = logging.getLogger("mkdocs.hooks.docs_site")

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SECTIONS = {"users": "Users", "operators": "Operators", "contributors": "Contributors", "adr": "Decisions"}

_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r"^([-*+]|\d+\.) ")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config):
    """Name every page: one that no section names would be found by search alone."""
    named = set(_pages(config.nav))
    for folder, title in SECTIONS.items():
        section = next(entry[title] for entry in config.nav if title in entry)
        pages = sorted(path.relative_to(DOCS).as_posix() for path in (DOCS / folder).glob("*.md"))
        section += [page for page in pages if page not in named]
    return config


def _pages(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for value in entry.values():
            yield from [value] if isinstance(value, str) else _pages(value)


def on_page_markdown(markdown, *, page, config, files):
    here = (DOCS / page.file.src_uri).parent
    return "\n".join(_lines(markdown, here, page.file.src_uri))


def _lines(markdown, here, name):
    before, is_code = "", False
    for line in markdown.splitlines():
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code:
            line = _LINK.sub(lambda found: _link(found, here, name), line)
            if _begins_block(line, before):
                yield ""
        before = line
        yield line


def _begins_block(line, before):
    """Whether a list or a table begins right behind a paragraph."""
    if not before.strip() or before.startswith(" "):
        return False
    if line.startswith("|"):
        return not before.startswith("|")
    return bool(_ITEM.match(line)) and not _ITEM.match(before)


def _link(found, here, name):
    text, target = found.group(1), found.group(2)
    path = pathlib.Path(os.path.normpath(here / target))
    if path.is_relative_to(DOCS):
        first = min(path.glob("*.md"), default=None) if path.is_dir() else None
        return f"[{text}]({target}{first.name})" if first else found.group(0)
    if not path.exists():
        log.warning("%s links to %s, which is not there", name, target)
    label = f"`{path.relative_to(ROOT).as_posix()}`"
    return label if text.strip("`") in label else f"{text} ({label})"
