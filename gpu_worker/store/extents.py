"""Free space of the arena: granule-aligned, sorted, merged, allocated by best fit. Pure."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """`size_bytes` from `offset` of the arena; both multiples of the granule."""

    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


class FreeSpace:
    """The holes of an arena. Never holds two that touch."""

    def __init__(self, holes: Iterable[Extent]) -> None:
        self._holes: list[Extent] = sorted(holes)

    def copy(self) -> FreeSpace:
        return FreeSpace(self._holes)

    @property
    def holes(self) -> Sequence[Extent]:
        return tuple(self._holes)

    @property
    def free_bytes(self) -> int:
        return sum(hole.size_bytes for hole in self._holes)

    def take(self, size_bytes: int) -> Extent | None:
        """Cut `size_bytes` from the smallest hole that has them, or None."""
        fitting = [hole for hole in self._holes if hole.size_bytes >= size_bytes]
        if not fitting:
            return None
        hole = min(fitting, key=lambda one: (one.size_bytes, one.offset))
        self._holes.remove(hole)
        if hole.size_bytes > size_bytes:
            insort(self._holes, Extent(hole.offset + size_bytes, hole.size_bytes - size_bytes))
        return Extent(hole.offset, size_bytes)

    def take_all(self, sizes: Sequence[int]) -> tuple[Extent, ...] | None:
        """Cut one extent for each of `sizes`, largest first, or none at all."""
        before = list(self._holes)
        taken: dict[int, Extent] = {}
        for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            extent = self.take(sizes[index])
            if extent is None:
                self._holes = before
                return None
            taken[index] = extent
        return tuple(taken[index] for index in range(len(sizes)))

    def give_back(self, extent: Extent) -> None:
        """Return an extent and merge it with the holes it touches."""
        merged = extent
        touching = [hole for hole in self._holes if hole.end == extent.offset or hole.offset == extent.end]
        for hole in touching:
            self._holes.remove(hole)
            merged = Extent(min(merged.offset, hole.offset), merged.size_bytes + hole.size_bytes)
        insort(self._holes, merged)
