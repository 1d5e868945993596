"""What a source holds, as values, and what every kind of source can do."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Layout(StrEnum):
    HUGGING_FACE = "huggingface"  # config.json beside safetensors
    GGUF = "gguf"  # one file that holds everything
    CHECKPOINT = "checkpoint"  # our own format: manifest.json beside partition-N.bin


@dataclass(frozen=True, slots=True, order=True)
class SourceFile:
    """`name` is relative and validated; `etag` changes when the bytes do (None: the server gives none)."""

    name: str
    size_bytes: int
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """What a download of `uri` would fetch now.

    `revision`: 16 hex digits that change when a byte may have changed.
    """

    uri: str
    layout: Layout
    revision: str
    files: tuple[SourceFile, ...]

    @property
    def source_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def described(uri: str, layout: Layout, files: Sequence[SourceFile]) -> SourceDescription:
    """Put a description together; the order of a listing does not change its revision."""
    ordered = tuple(sorted(files))
    digest = hashlib.sha256(uri.encode())
    for file in ordered:
        digest.update(f"\0{file.name}\0{file.size_bytes}\0{file.etag or ''}".encode())
    return SourceDescription(uri, layout, digest.hexdigest()[:16], ordered)


class Source(ABC):
    """One validated source. Errors are SourceUnreachable, SourceCorrupt, SourceUnsupported."""

    @property
    def local_path(self) -> Path | None:
        """Where a converter can read it in place, or None when it has to be fetched."""
        return None

    @property
    def reads_in_place(self) -> bool:
        """Whether `read_into` receives where it is told to, without a copy."""
        return False

    async def doubt(self) -> None:
        """Hear that what came was wrong, twice: whoever can look for itself does."""
        return

    @abstractmethod
    async def describe(self) -> SourceDescription:
        """What it holds now."""

    @abstractmethod
    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        """Exactly `size_bytes` of the very bytes that were described, or an error."""

    async def read_into(self, file: SourceFile, *, start: int, into: memoryview) -> None:
        """Fill `into` from `start` of the file; once this ends, cancelled too, nothing writes to it."""
        into[:] = await self.read_range(file, start=start, size_bytes=len(into))
