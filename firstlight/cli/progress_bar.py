"""Bytes on their way, shown on standard error while they move; nothing where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# (bytes_done, bytes_total)
Advance = Callable[[int, int], None]


@contextmanager
def progress_of(what: str, *, is_quiet: bool) -> Iterator[Advance]:
    """Yields what is called with bytes done and bytes in all, as often as one likes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    is_hidden = is_quiet or not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=is_hidden) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
