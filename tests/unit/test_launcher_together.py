"""Works side by side: one failure or one cancellation ends all, once."""

from __future__ import annotations

import asyncio

import pytest

from firstlight.launcher.together import together


class Work:
    def __init__(self, *, clearing_up: int = 3) -> None:
        self.began = asyncio.Event()
        self.is_clear = False
        self._clearing_up = clearing_up

    async def run(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            # Takes several turns of the loop, as a process to be waited for does.
            for _ in range(self._clearing_up):
                await asyncio.sleep(0)
            self.is_clear = True


async def test_results_come_in_order() -> None:
    async def give(value: int) -> int:
        await asyncio.sleep(0)
        return value

    assert await together(give(1), give(2)) == [1, 2]


async def test_a_failure_ends_the_others_and_waits_for_their_end() -> None:
    work = Work()

    async def fail() -> None:
        await work.began.wait()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await together(work.run(), fail())
    assert work.is_clear


async def test_a_cancellation_waits_until_the_slowest_has_cleared_up() -> None:
    quick, slow = Work(clearing_up=0), Work(clearing_up=50)
    task = asyncio.ensure_future(together(quick.run(), slow.run()))
    await quick.began.wait()
    await slow.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert quick.is_clear and slow.is_clear
