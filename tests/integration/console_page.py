"""The console as somebody at a keyboard meets it: what is shown, what is pressed, what can be read."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chromium import Page, browsing, find_chromium

CHROMIUM = find_chromium()
CHECKS = (Path(__file__).parent / "console_checks.js").read_text()
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium on the path; install one (Debian: apt-get install chromium) or set "
    "FIRSTLIGHT_TEST_CHROMIUM",
)


@asynccontextmanager
async def looking() -> AsyncIterator[Page]:
    """A browser's one tab. Raises: AssertionError afterwards for anything the page did wrong."""
    assert CHROMIUM is not None
    async with browsing(CHROMIUM) as opened:
        await opened.look()
        yield opened
        # Among them would be every refusal of the page's own policy.
        assert opened.problems == []


def has(selector: str, text: str = "") -> str:
    """An expression: some element that meets the selector shows this text."""
    return (
        f"[...document.querySelectorAll({selector!r})]"
        f".some(e => e.checkVisibility() && e.textContent.includes({text!r}))"
    )


async def live(page: Page, url: str) -> None:
    await page.open(f"{url}/console")
    await page.until(has("#link", "live"))


async def press(page: Page, name: str) -> None:
    """Reach a button by keyboard, whatever is on the way, and press it."""
    await page.focus_on(
        f"e.matches('button, summary') && (e.getAttribute('aria-label') || e.textContent) === {name!r}"
    )
    await page.press("Enter")


async def fill(page: Page, field: str, text: str) -> None:
    await page.focus_on(f"e.id === 'field-{field}'")
    await page.type(text)


async def is_clear(page: Page) -> None:
    """Nothing faint, nameless or out of place, in light and dark, in a wide and a narrow window."""
    for dark in (False, True):
        await page.look(dark=dark, width=400 if dark else 1280)
        found = await page.run(CHECKS)
        levels = found.pop("levels")
        assert found == {"faint": [], "nameless": [], "twice": [], "overflow": 0}, f"{dark=}"
        assert levels[0] == 1 and all(below - above <= 1 for above, below in itertools.pairwise(levels))
    await page.look()
