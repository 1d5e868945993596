"""Reads safetensors files as they are: header validated, tensors in pieces. No torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable
from native_loader.safetensors_header import (
    LENGTH_BYTES,
    SafetensorsHeader,
    SourceTensor,
    header_length,
    parse_header,
)

__all__ = ["LENGTH_BYTES", "SafetensorsFile", "SourceTensor", "header_length", "read_header"]

PIECE_BYTES = 8 << 20


def read_header(path: Path) -> tuple[SafetensorsHeader, int]:
    """The header of a local file and the file's size; nothing else of it is read, and nothing mapped.

    A link is followed (hubs keep their files behind links), but a pipe or a device is refused.
    Raises: SourceUnreachable, SourceCorrupt.
    """
    with _opened(path) as fd:
        return _read_header(path, fd)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise SourceUnreachable(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except SourceCorrupt as error:
        raise SourceCorrupt(f"{path.name}: {error.message}", path=str(path)) from error


def _read_header(path: Path, fd: int) -> tuple[SafetensorsHeader, int]:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SourceUnreachable(f"{path} is not a plain file", path=str(path))
    length = header_length(os.pread(fd, LENGTH_BYTES, 0), file_bytes=status.st_size)
    header = bytearray()
    while len(header) < length:
        piece = os.pread(fd, length - len(header), LENGTH_BYTES + len(header))
        if not piece:
            raise SourceCorrupt("the file was cut short while it was read")
        header += piece
    return parse_header(bytes(header), file_bytes=status.st_size), status.st_size


class SafetensorsFile:
    """A local file, its header valid. Nothing is mapped: a file cut short meanwhile is an error, not a crash.

    Raises: SourceUnreachable if it cannot be opened, SourceCorrupt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as fd:
            header, _ = _read_header(path, fd)
            self._file = os.fdopen(os.dup(fd), "rb", buffering=0)
        self.tensors = header.tensors
        self.metadata = header.metadata

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The tensor's bytes in order; each piece is good until the next one is asked for.

        Raises: KeyError, SourceCorrupt (cut short), SourceUnreachable.
        """
        tensor = self.tensors[name]
        buffer = memoryview(bytearray(min(tensor.size_bytes, PIECE_BYTES)))
        at, end = tensor.offset, tensor.offset + tensor.size_bytes
        while at < end:
            got = self._read(buffer[: end - at], at)
            at += got.nbytes
            yield got

    def _read(self, into: memoryview, offset: int) -> memoryview:
        try:
            count = os.preadv(self._file.fileno(), [into], offset)
        except OSError as error:
            raise SourceUnreachable(f"cannot read {self._path}: {error.strerror}") from error
        if count == 0:
            raise SourceCorrupt(f"{self._path.name} was cut short while it was read", path=str(self._path))
        return into[:count]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
