"""How much memory a pool may take on this machine, and keeping it there once it has it."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger("store.memory")

GRANULE_BYTES = 2 * 2**20
# Left to everything else when memory is short.
MARGIN_BYTES = 256 * 2**20


def granted_bytes(wanted_bytes: int, figures: Mapping[str, int] | None = None) -> int:
    """What a pool of `wanted_bytes` gets: no more than is there, so that nobody is killed for it.

    Engines that outlive a store keep its old arena until they end; the next store's pool is smaller by that,
    and whole again at the start after they have gone. `figures`: /proc/meminfo in bytes.
    """
    figures = figures if figures is not None else read_meminfo()
    if figures.get("HugePages_Free", 0) * figures.get("Hugepagesize", 0) >= wanted_bytes:
        return wanted_bytes  # reserved ahead for this very use
    free_bytes = max(GRANULE_BYTES, figures.get("MemAvailable", wanted_bytes + MARGIN_BYTES) - MARGIN_BYTES)
    if free_bytes >= wanted_bytes:
        return wanted_bytes
    granted = free_bytes // GRANULE_BYTES * GRANULE_BYTES
    log.warning(
        "the pool gets %d of %d bytes: no more is free (engines that outlived a store hold its memory)",
        granted,
        wanted_bytes,
    )
    return granted


def read_meminfo() -> dict[str, int]:
    """/proc/meminfo, sizes in bytes and counts as they are."""
    found = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        number, *unit = value.split()
        found[name] = int(number) * (1024 if unit else 1)
    return found


def lock(memory: memoryview) -> bool:
    """Keep pages that are there from being swapped out. False where this user may not lock so much."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(memory.nbytes)) == 0:
        return True
    log.info(
        "the arena is not locked (errno %d): under pressure a swap device may take it", ctypes.get_errno()
    )
    return False
