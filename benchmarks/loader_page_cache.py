"""Files in and out of the kernel's page cache, and proof of which they are."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 8 << 20
PATIENCE_S = 20.0


class PageCacheUnwilling(RuntimeError):
    """The kernel kept what it was asked to drop, or dropped what it was asked to keep."""


def drop(files: Iterable[Path]) -> None:
    """Out of the page cache, every page, verified. Raises: PageCacheUnwilling."""
    for file in files:
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            _forget(file)
            kept = resident_pages(file)
            if kept == 0:
                break
            # A page that somebody has mapped, or that is being read ahead, stays until they are done.
            if time.monotonic() > give_up_s:
                raise PageCacheUnwilling(f"{kept} pages of {file} stay in the page cache")
            time.sleep(0.05)


def warm(files: Iterable[Path]) -> None:
    """Into the page cache, every page, verified. Raises: PageCacheUnwilling."""
    for file in files:
        give_up_s = time.monotonic() + PATIENCE_S
        while True:
            _read(file)
            missing = page_count(file) - resident_pages(file)
            if missing <= 0:
                break
            # Others want memory too; what they took is read again, for a while.
            if time.monotonic() > give_up_s:
                raise PageCacheUnwilling(f"{missing} pages of {file} did not stay in the page cache")


def resident_share(files: Iterable[Path]) -> float:
    """Of all pages of `files`, which share is in the page cache."""
    listed = list(files)
    total = sum(page_count(file) for file in listed)
    return sum(resident_pages(file) for file in listed) / total if total else 0.0


def page_count(file: Path) -> int:
    return -(-file.stat().st_size // mmap.PAGESIZE)


def resident_pages(file: Path) -> int:
    """Pages of the file in the page cache, as mincore tells."""
    size_bytes = file.stat().st_size
    if size_bytes == 0:
        return 0
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    fd = os.open(file, os.O_RDONLY)
    try:
        address = library.mmap(None, size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"cannot map {file}")
    try:
        pages = ctypes.create_string_buffer(page_count(file))
        if library.mincore(address, size_bytes, pages) != 0:
            raise OSError(ctypes.get_errno(), f"mincore of {file}")
        # The lowest bit tells; the others are reserved.
        return len(pages.raw) - pages.raw.count(b"\0")
    finally:
        library.munmap(address, size_bytes)


def _forget(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)  # only clean pages can be dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _read(file: Path) -> None:
    block = bytearray(BLOCK_BYTES)
    with file.open("rb", buffering=0) as source:
        while source.readinto(block):
            pass
