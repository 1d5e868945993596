"""The book of the DRAM arena: who has which bytes, who reads them, who goes when room is needed.

Pure: it moves no byte and knows no clock. Laws (tests hold them): extents never overlap; used plus free is
the capacity, to the byte; nothing that is pinned or loading is ever evicted; room that a reader was told of
goes to nobody else before that reader has let go, though the load that filled it failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from firstlight.domain.errors import Conflict, LargerThanPool, PoolFull, UnknownCheckpoint
from gpu_worker.store.eviction import EvictionOrder
from gpu_worker.store.extents import Extent, FreeSpace

GRANULE_BYTES = 2 * 2**20


@dataclass(slots=True)
class _Entry:
    checkpoint_id: str
    extents: tuple[Extent, ...]
    sizes: tuple[int, ...]  # bytes of each partition, before rounding
    cost_s: float
    is_loading: bool = True
    pins: Counter[str] = field(default_factory=Counter)

    @property
    def reserved_bytes(self) -> int:
        return sum(extent.size_bytes for extent in self.extents)

    @property
    def partitions(self) -> tuple[Extent, ...]:
        return tuple(
            Extent(extent.offset, size) for extent, size in zip(self.extents, self.sizes, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room for one checkpoint, one extent a partition; `evicted` names who went for it."""

    extents: tuple[Extent, ...]
    evicted: tuple[str, ...]


class Pool:
    """Not thread-safe: one event loop owns it."""

    def __init__(self, *, capacity_bytes: int, granule_bytes: int = GRANULE_BYTES) -> None:
        self._granule = granule_bytes
        self.capacity_bytes = capacity_bytes // granule_bytes * granule_bytes
        whole = [Extent(0, self.capacity_bytes)] if self.capacity_bytes else []
        self._free = FreeSpace(whole)
        self._entries: dict[str, _Entry] = {}
        # Of failed loads and wrong bytes, while their readers still look at the room: nobody may write there.
        self._doomed: list[_Entry] = []
        self._order = EvictionOrder()

    @property
    def used_bytes(self) -> int:
        return self.capacity_bytes - self._free.free_bytes

    @property
    def checkpoint_ids(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def is_resident(self, checkpoint_id: str) -> bool:
        entry = self._entries.get(checkpoint_id)
        return entry is not None and not entry.is_loading

    def is_loading(self, checkpoint_id: str) -> bool:
        entry = self._entries.get(checkpoint_id)
        return entry is not None and entry.is_loading

    @property
    def doomed_bytes(self) -> int:
        """Room of failed loads and wrong bytes that waits for its last reader."""
        return sum(entry.reserved_bytes for entry in self._doomed)

    def size_of(self, checkpoint_id: str) -> int:
        """Bytes of its partitions, before rounding. Raises: UnknownCheckpoint."""
        return sum(self._resident(checkpoint_id).sizes)

    def pins(self, checkpoint_id: str) -> int:
        entry = self._entries.get(checkpoint_id)
        return 0 if entry is None else entry.pins.total()

    def is_evictable(self, checkpoint_id: str) -> bool:
        entry = self._entries[checkpoint_id]
        return not entry.is_loading and not entry.pins

    def reserve(self, checkpoint_id: str, sizes: Sequence[int], *, cost_s: float) -> Reservation:
        """Make room for partitions of `sizes` bytes, evicting by cost-aware LRU; the entry is `loading`.

        Raises: PoolFull when not even evicting everything that may go makes room (LargerThanPool: nor ever
        would); nothing is evicted then.
        """
        if checkpoint_id in self._entries:
            raise Conflict(f"{checkpoint_id} has room in the pool already", checkpoint_id=checkpoint_id)
        rounded = [self._rounded(size) for size in sizes]
        victims = self._victims(rounded, checkpoint_id)
        for victim in victims:
            self._give_back(victim)
            self._order.evicted(victim)
        extents = self._free.take_all(rounded)
        assert extents is not None, "the victims were chosen so that it fits"
        self._entries[checkpoint_id] = _Entry(checkpoint_id, extents, tuple(sizes), cost_s)
        return Reservation(extents, tuple(victims))

    def commit(self, checkpoint_id: str) -> None:
        """The bytes are there: it may be pinned, and evicted, from now on."""
        entry = self._entries[checkpoint_id]
        entry.is_loading = False
        self._order.touch(checkpoint_id, cost_s=entry.cost_s, size_bytes=sum(entry.sizes))

    def abandon(self, checkpoint_id: str) -> None:
        """The load failed, nobody writes any more: the room is free once nobody reads along."""
        entry = self._entries[checkpoint_id]
        if not entry.is_loading:
            raise Conflict(f"{checkpoint_id} is resident, not loading", checkpoint_id=checkpoint_id)
        if entry.pins:
            self._doomed.append(self._entries.pop(checkpoint_id))
        else:
            self._give_back(checkpoint_id)

    def touch(self, checkpoint_id: str) -> None:
        """Note a use of a resident checkpoint."""
        entry = self._resident(checkpoint_id)
        self._order.touch(checkpoint_id, cost_s=entry.cost_s, size_bytes=sum(entry.sizes))

    def expect(self, needs: Mapping[str, float]) -> None:
        """How likely checkpoints are to be wanted soon, 0 to 1; of those not named nothing is known."""
        self._order.expect(needs)

    def pin(self, checkpoint_id: str, reader: str, *, while_loading: bool = False) -> tuple[Extent, ...]:
        """Hold it for `reader`; extents carry the partitions' own sizes. Raises: UnknownCheckpoint."""
        if while_loading and self.is_loading(checkpoint_id):
            entry = self._entries[checkpoint_id]
        else:
            entry = self._resident(checkpoint_id)
            self.touch(checkpoint_id)
        entry.pins[reader] += 1
        return entry.partitions

    def pinned_by(self, checkpoint_id: str, reader: str) -> tuple[Extent, ...]:
        """What `pin` answered this reader, while it holds that. Raises: UnknownCheckpoint."""
        entry = self._entries.get(checkpoint_id)
        if entry is None or not entry.pins[reader]:
            raise UnknownCheckpoint(
                f"{checkpoint_id} is not pinned by this reader", checkpoint_id=checkpoint_id
            )
        return entry.partitions

    def unpin(self, checkpoint_id: str, reader: str) -> None:
        """Drop one of `reader`'s pins. Raises: UnknownCheckpoint when it holds none."""
        there = self._entries.get(checkpoint_id)
        condemned = [entry for entry in self._doomed if entry.checkpoint_id == checkpoint_id]
        # Of one that was condemned meanwhile, the older pin is let go of first.
        entry = next((one for one in (*condemned, there) if one is not None and one.pins[reader]), None)
        if entry is None:
            raise UnknownCheckpoint(
                f"{checkpoint_id} is not pinned by this reader", checkpoint_id=checkpoint_id
            )
        entry.pins[reader] -= 1
        # A Counter keeps zeros, and a zero would read as a pin.
        entry.pins += Counter()
        self._free_doomed()

    def drop_reader(self, reader: str) -> tuple[str, ...]:
        """Drop every pin of a reader that is gone; names what it held."""
        held = tuple(name for name, entry in self._entries.items() if entry.pins[reader])
        for entry in (*self._entries.values(), *self._doomed):
            entry.pins.pop(reader, None)
        self._free_doomed()
        return held

    def evict(self, checkpoint_id: str) -> int:
        """Take one checkpoint out and answer the bytes freed. Raises: Conflict, UnknownCheckpoint."""
        if checkpoint_id not in self._entries:
            raise UnknownCheckpoint(f"{checkpoint_id} is not in DRAM", checkpoint_id=checkpoint_id)
        if not self.is_evictable(checkpoint_id):
            raise Conflict(f"{checkpoint_id} is being loaded or read", checkpoint_id=checkpoint_id)
        self._order.forget(checkpoint_id)
        return self._give_back(checkpoint_id)

    def condemn(self, checkpoint_id: str) -> int:
        """Its bytes are wrong: nobody gets them any more; the room is free once its readers are gone.

        Answers how many still read it. Raises: UnknownCheckpoint.
        """
        entry = self._resident(checkpoint_id)
        self._order.forget(checkpoint_id)
        self._doomed.append(self._entries.pop(checkpoint_id))
        self._free_doomed()
        return entry.pins.total()

    def check_integrity(self) -> None:
        """Assert the laws of the book."""
        entries = (*self._entries.values(), *self._doomed)
        taken = sorted(extent for entry in entries for extent in entry.extents)
        assert all(entry.pins for entry in self._doomed), "room is kept for nobody"
        tiles = sorted([*taken, *self._free.holes])
        end = 0
        for tile in tiles:
            assert tile.size_bytes > 0 and tile.offset == end, "extents overlap or leave a gap"
            end = tile.end
        assert end == self.capacity_bytes, "bytes were lost"
        assert self.used_bytes == sum(extent.size_bytes for extent in taken), "the account is wrong"

    def _rounded(self, size_bytes: int) -> int:
        return max(1, -(-size_bytes // self._granule)) * self._granule

    def _resident(self, checkpoint_id: str) -> _Entry:
        entry = self._entries.get(checkpoint_id)
        if entry is None or entry.is_loading:
            raise UnknownCheckpoint(f"{checkpoint_id} is not resident in DRAM", checkpoint_id=checkpoint_id)
        return entry

    def _give_back(self, checkpoint_id: str) -> int:
        entry = self._entries.pop(checkpoint_id)
        self._free_all(entry)
        return entry.reserved_bytes

    def _free_doomed(self) -> None:
        for entry in [entry for entry in self._doomed if not entry.pins]:
            self._doomed.remove(entry)
            self._free_all(entry)

    def _free_all(self, entry: _Entry) -> None:
        for extent in entry.extents:
            self._free.give_back(extent)

    def _fits_without(self, victims: Sequence[str], rounded: Sequence[int]) -> bool:
        trial = self._free.copy()
        for victim in victims:
            for extent in self._entries[victim].extents:
                trial.give_back(extent)
        return trial.take_all(rounded) is not None

    def _victims(self, rounded: Sequence[int], checkpoint_id: str) -> list[str]:
        """The cheapest run of victims that makes room, less those that turn out not to be needed."""
        order = self._order.first_to_go({name for name in self._entries if self.is_evictable(name)})
        chosen: list[str] = []
        while not self._fits_without(chosen, rounded):
            if len(chosen) == len(order):
                raise self._full(rounded, checkpoint_id)
            chosen.append(order[len(chosen)])
        for name in reversed(chosen[:]):
            rest = [victim for victim in chosen if victim != name]
            if self._fits_without(rest, rounded):
                chosen = rest
        return chosen

    def _full(self, rounded: Sequence[int], checkpoint_id: str) -> PoolFull:
        need, held = (
            sum(rounded),
            self.doomed_bytes
            + sum(
                entry.reserved_bytes for name, entry in self._entries.items() if not self.is_evictable(name)
            ),
        )
        never = need > self.capacity_bytes
        why = (
            "it is larger than the pool"
            if never
            else f"{held} bytes are being read or loaded and what is left is too little or too scattered"
        )
        return (LargerThanPool if never else PoolFull)(
            f"{checkpoint_id} needs {need} bytes of the DRAM pool's {self.capacity_bytes}, but {why}",
            checkpoint_id=checkpoint_id,
            need_bytes=need,
            capacity_bytes=self.capacity_bytes,
        )
