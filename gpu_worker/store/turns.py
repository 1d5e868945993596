"""Whose turn it is at the device: who is waited for before who comes ahead of need, each in the order asked.

What is brought ahead of need and has its turn already is told when somebody else wants it, and may go on
after that one: it keeps its place before others of its kind.
"""

from __future__ import annotations

import asyncio
from itertools import count
from types import TracebackType


class Turn:
    """One claim on the device. As a context manager: had from entering to leaving."""

    def __init__(self, turns: Turns, number: int, *, is_ahead: bool) -> None:
        self._turns = turns
        self._number = number
        self.is_ahead = is_ahead
        self._granted = asyncio.Event()
        # Set while this one, which is ahead of need, keeps somebody waiting who is not.
        self.keeps_waiting = asyncio.Event()

    @property
    def rank(self) -> tuple[bool, int]:
        return (self.is_ahead, self._number)

    def promote(self) -> None:
        """It is waited for now."""
        if self.is_ahead:
            self.is_ahead = False
            self._turns.look()

    async def __aenter__(self) -> Turn:
        await self.take()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def take(self) -> None:
        self._granted.clear()
        self._turns.join(self)
        try:
            await self._granted.wait()
        except BaseException:  # granted in this very moment, perhaps
            self.release()
            raise

    def grant(self) -> None:
        self._granted.set()

    def release(self) -> None:
        """Leave it to the next, whether it was had or only waited for."""
        self.keeps_waiting.clear()
        self._turns.leave(self)


class Turns:
    """The device's queue."""

    def __init__(self) -> None:
        self._numbers = count()
        self._holder: Turn | None = None
        self._waiting: list[Turn] = []

    def turn(self, *, is_ahead: bool = False) -> Turn:
        return Turn(self, next(self._numbers), is_ahead=is_ahead)

    def join(self, turn: Turn) -> None:
        self._waiting.append(turn)
        self.look()

    def leave(self, turn: Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
        if self._holder is turn:
            self._holder = None
        self.look()

    def look(self) -> None:
        """Grant the turn to who is first, or have who holds it ahead of need know of who is not."""
        if self._holder is None and self._waiting:
            self._holder = min(self._waiting, key=lambda turn: turn.rank)
            self._waiting.remove(self._holder)
            self._holder.grant()
        holder = self._holder
        if holder is None:
            return
        if holder.is_ahead and any(not turn.is_ahead for turn in self._waiting):
            holder.keeps_waiting.set()
        else:
            holder.keeps_waiting.clear()
