"""The partition files of a download: reserved at once, written chunk by chunk past the page cache."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

from firstlight.domain.errors import DiskFull, FirstlightError, StorageError
from gpu_worker.store.streaming.chunk_book import ChunkEntry
from native_loader.manifest import Manifest

log = logging.getLogger("store.stream")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a file system answers that knows no direct I/O, at the opening or at the first write.
_NOT_DIRECT = (errno.EINVAL, errno.EOPNOTSUPP)


class PartitionFiles:
    """Any thread may write any chunk once. Raises: DiskFull, StorageError."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._fds: list[int] = []
        self._is_direct = True
        try:
            for partition in manifest.partitions:
                self._fds.append(self._open(directory / partition.name, partition.size_bytes))
        except OSError as failure:
            self.close()
            raise storage_error(failure, directory) from failure
        self._directory = directory

    def write(self, entry: ChunkEntry, data: memoryview) -> None:
        """Blocks until the device has it."""
        fd, at = self._fds[entry.chunk.partition], entry.chunk.start
        try:
            while data:
                done = self._put(fd, data, at)
                at, data = at + done, data[done:]
        except OSError as failure:
            raise storage_error(failure, self._directory) from failure

    def read(self, entry: ChunkEntry, into: memoryview) -> bool:
        """Fill `into` with the chunk as it stands on disk; False when the file ends before it does."""
        fd, at = self._fds[entry.chunk.partition], entry.chunk.start
        while into:
            try:
                done = os.preadv(fd, [into], at)
            except OSError as failure:
                if failure.errno in _NOT_DIRECT and self._is_direct:
                    self._without_direct()
                    continue
                return False
            if done == 0:
                return False
            at, into = at + done, into[done:]
        return True

    def sync(self) -> None:
        """What was written survives a loss of power."""
        try:
            for fd in self._fds:
                os.fsync(fd)
        except OSError as failure:
            raise storage_error(failure, self._directory) from failure

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _open(self, path: Path, size_bytes: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(path, flags | os.O_DIRECT, 0o644)
        except OSError as failure:
            if failure.errno not in _NOT_DIRECT:
                raise
            self._is_direct = False
            log.info("direct writes are refused by this file system; the page cache is used")
            fd = os.open(path, flags, 0o644)
        try:
            if size_bytes:
                # Now, not at the last chunk: a disk that is too small is known before a byte has moved.
                self._reserve(fd, size_bytes)
            os.ftruncate(fd, size_bytes)
        except OSError:
            os.close(fd)
            raise
        return fd

    def _reserve(self, fd: int, size_bytes: int) -> None:
        try:
            os.posix_fallocate(fd, 0, size_bytes)
        except OSError as failure:
            if failure.errno not in _NOT_DIRECT:
                raise

    def _put(self, fd: int, data: memoryview, at: int) -> int:
        try:
            return os.pwrite(fd, data, at)
        except OSError as failure:
            if failure.errno not in _NOT_DIRECT or not self._is_direct:
                raise
            self._without_direct()
            return os.pwrite(fd, data, at)

    def _without_direct(self) -> None:
        import fcntl

        self._is_direct = False
        log.info("direct I/O is refused by this file system; the page cache is used")
        for fd in self._fds:
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def storage_error(failure: OSError, path: Path) -> FirstlightError:
    """The operating system's answer in our own words."""
    kind = DiskFull if failure.errno in _FULL else StorageError
    return kind(f"cannot write below {path.name}: {failure.strerror}", errno=failure.errno)
