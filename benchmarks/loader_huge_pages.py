"""Huge pages for as long as a measurement needs them: fio's buffers and the pool of the resident store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_PAGE_BYTES = 2 << 20
RESERVED = Path("/proc/sys/vm/nr_hugepages")
COMPACT = Path("/proc/sys/vm/compact_memory")


@contextmanager
def huge_pages(size_bytes: int) -> Iterator[str | None]:
    """Reserve 2 MiB pages for `size_bytes` more, and give them back. Yields why not, or None."""
    wanted = -(-size_bytes // HUGE_PAGE_BYTES)
    try:
        before = int(RESERVED.read_text())
        RESERVED.write_text(str(before + wanted))
        if int(RESERVED.read_text()) < before + wanted:
            COMPACT.write_text("1")  # huge pages are made of neighbours, and an aged memory has few
            RESERVED.write_text(str(before + wanted))
        granted = int(RESERVED.read_text()) - before
    except OSError as refusal:
        yield f"huge pages cannot be reserved ({refusal.strerror}): run as root"
        return
    try:
        yield None if granted >= wanted else f"of {wanted} huge pages the kernel granted {max(granted, 0)}"
    finally:
        now = int(RESERVED.read_text())
        RESERVED.write_text(str(max(0, now - max(granted, 0))))
