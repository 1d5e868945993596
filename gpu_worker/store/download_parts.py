"""What every download of a store works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_worker.store.loads import Loads
from gpu_worker.store.sources import Source
from gpu_worker.store.ssd_cache import SsdCache
from gpu_worker.store.streaming.planner import Planner

# (endpoint of another store, checkpoint id)
PeerOpener = Callable[[str, str], Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadParts:
    """Without a `planner` nothing is streamed, without `loads` nothing goes into DRAM on its way."""

    cache: SsdCache
    parallelism: int
    converter: Sequence[str]
    # Two conversions side by side would double the memory one needs.
    one_conversion: asyncio.Lock
    planner: Planner | None
    loads: Loads | None
    open_peer: PeerOpener | None
