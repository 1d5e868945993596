"""What a person sees while Firstlight starts: one line per step with its seconds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Steps:
    """Steps may run side by side. On a terminal the running ones have a spinner; elsewhere only ends show."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Steps:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """One line above the running steps."""
        self._console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show `text` while the body runs; leave a line with its seconds when it ended well."""
        began_s = time.monotonic()
        task = self._live.add_task(text, total=None)
        try:
            yield
        finally:
            self._live.remove_task(task)
        self._console.print(f"[green]✓[/] {text} [dim]{time.monotonic() - began_s:.1f} s[/]", highlight=False)
