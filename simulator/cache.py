"""Checkpoints that one tier of one host holds, counted in bytes; the least recently used goes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Cache:
    """A checkpoint that is pinned (its bytes move, or are read) is never dropped."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        # In order of last use, oldest first.
        self._sizes: dict[str, int] = {}
        self._pins: dict[str, int] = {}

    def __contains__(self, checkpoint: str) -> bool:
        return checkpoint in self._sizes

    def __iter__(self) -> Iterable[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def names(self) -> tuple[str, ...]:
        return tuple(self._sizes)

    def size_bytes(self, checkpoint: str) -> int:
        return self._sizes[checkpoint]

    def touch(self, checkpoint: str) -> None:
        self._sizes[checkpoint] = self._sizes.pop(checkpoint)

    def pin(self, checkpoint: str) -> None:
        self._pins[checkpoint] = self._pins.get(checkpoint, 0) + 1

    def unpin(self, checkpoint: str) -> None:
        left = self._pins[checkpoint] - 1
        if left:
            self._pins[checkpoint] = left
        else:
            del self._pins[checkpoint]

    def add(
        self,
        checkpoint: str,
        size_bytes: int,
        *,
        order: Callable[[Iterable[str]], Iterable[str]] | None = None,
    ) -> tuple[str, ...] | None:
        """Hold it, dropping others in `order` (default: least recently used first).

        Returns what was dropped; None if room cannot be made, and then nothing was.
        """
        if checkpoint in self._sizes:
            self.touch(checkpoint)
            return ()
        missing_bytes = self.used_bytes + size_bytes - self.capacity_bytes
        dropped: list[str] = []
        if missing_bytes > 0:
            loose = [name for name in self._sizes if name not in self._pins]
            for name in order(loose) if order else loose:
                dropped.append(name)
                missing_bytes -= self._sizes[name]
                if missing_bytes <= 0:
                    break
            if missing_bytes > 0:
                return None
        for name in dropped:
            self.drop(name)
        self._sizes[checkpoint] = size_bytes
        self.used_bytes += size_bytes
        return tuple(dropped)

    def drop(self, checkpoint: str) -> None:
        assert checkpoint not in self._pins, f"{checkpoint} is in use"
        self.used_bytes -= self._sizes.pop(checkpoint)
