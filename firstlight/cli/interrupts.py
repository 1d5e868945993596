"""Ctrl-C that is heard whatever the program is doing.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a finalizer or another call-back of
the interpreter the exception is printed and forgotten, and a loop that prints an endless answer would go on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def hearing_interrupts() -> Iterator[Callable[[], None]]:
    """Gives what to call now and then: it raises KeyboardInterrupt once one was pressed."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        # Signals are not for other threads.
        yield check
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
