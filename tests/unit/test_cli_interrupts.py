"""Ctrl-C at the worst moment."""

from __future__ import annotations

import signal

import pytest

from firstlight.cli.interrupts import hearing_interrupts


class Last:
    """Ctrl-C is pressed as it is finalized, where Python forgets exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_python_swallows_is_raised_at_the_next_look() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = 0
    with pytest.raises(KeyboardInterrupt), hearing_interrupts() as check:
        for _ in range(3):
            check()
            seen += 1
            Last()
    assert seen == 1
    assert signal.getsignal(signal.SIGINT) is before


def test_one_that_is_raised_at_once_passes_and_nothing_is_raised_without_any() -> None:
    with hearing_interrupts() as check:
        check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
