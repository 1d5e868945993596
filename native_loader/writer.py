"""Writes a checkpoint so that a crash at any moment leaves either all of it or nothing that counts.

Everything goes to a hidden sibling directory, is fsynced, and takes its name in one rename. While its writer
lives the directory is locked; a lock that can be had means a writer that died.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from firstlight.domain.errors import CheckpointMismatch, InvalidInput
from native_loader._native import PartitionWriter
from native_loader.dtypes import BITS
from native_loader.manifest import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    TENSOR_ALIGNMENT_BYTES,
    FileEntry,
    Manifest,
    PartitionEntry,
    TensorEntry,
    parse_manifest,
    partition_name,
    sealed,
)
from native_loader.manifest_laws import contiguous_stride, extent_bytes, is_plain_file_name
from native_loader.storage_errors import storage_errors
from native_loader.temporary_directory import create_temporary, fsync_directory

if TYPE_CHECKING:
    import torch

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class StorageMember:
    """One tensor of a storage: `offset` counts bytes from the storage's beginning."""

    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class CheckpointWriter:
    """Add tensors in execution order, then `commit`; leaving without it removes what was written.

    Not for several threads at once. Raises: DiskFull, StorageError from every method.
    """

    def __init__(
        self,
        destination: Path,
        *,
        source: str,
        revision: str,
        transformers_version: str | None = None,
        partition_count: int = 1,
        chunk_bytes: int = CHUNK_BYTES,
        expected_bytes: int = 0,
    ) -> None:
        """`expected_bytes` per partition are reserved at once, so that a full disk is known at the start."""
        self._destination = destination
        self._source, self._revision = source, revision
        self._transformers_version = transformers_version
        self._chunk_bytes = chunk_bytes
        self._tensors: list[TensorEntry] = []
        self._aliases: dict[str, str] = {}
        self._files: list[FileEntry] = []
        self._bytes_by_dtype: Counter[str] = Counter()
        self._directory, self._lock_fd = create_temporary(destination)
        try:
            self._partitions = [
                PartitionWriter(
                    str(self._directory / partition_name(index)),
                    chunk_bytes=chunk_bytes,
                    expected_bytes=expected_bytes,
                )
                for index in range(partition_count)
            ]
        except BaseException:
            self._discard()
            raise

    def add_tensor(
        self,
        name: str,
        data: Buffer | torch.Tensor,
        *,
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        partition: int = 0,
    ) -> None:
        """Append one tensor. A buffer needs `dtype` and `shape`; a torch tensor brings its own, strides too.

        Raises: InvalidInput if the bytes do not fit the shape.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            from native_loader.torch_source import tensor_member

            member, data = tensor_member(name, data)
            self.add_storage(data, [member], partition=partition)
            return
        if dtype is None or shape is None:
            raise InvalidInput(f"{name!r}: a buffer needs a dtype and a shape", name=name)
        strides = contiguous_stride(tuple(shape)) if stride is None else tuple(stride)
        self.add_storage(data, [StorageMember(name, 0, dtype, tuple(shape), strides)], partition=partition)

    def add_pieces(
        self, name: str, pieces: Iterable[Buffer], *, dtype: str, shape: Sequence[int], partition: int = 0
    ) -> None:
        """Append one contiguous tensor whose bytes come piece by piece; it is never in memory whole.

        Raises: InvalidInput if they are too many or too few for the shape. The writer is of no use then.
        """
        member = StorageMember(name, 0, dtype, tuple(shape), contiguous_stride(tuple(shape)))
        expected = _extent(member)
        writer = self._partitions[partition]
        writer.pad_to(TENSOR_ALIGNMENT_BYTES)
        start = writer.position
        for piece in pieces:
            writer.append(piece)
        if writer.position - start != expected:
            raise InvalidInput(f"{name!r} takes {expected} bytes, {writer.position - start} given", name=name)
        self._tensors.append(_entry(member, partition=partition, start=start, first=member))
        self._bytes_by_dtype[dtype] += expected

    def add_storage(self, data: Buffer, members: Sequence[StorageMember], *, partition: int = 0) -> None:
        """Append bytes that several overlapping tensors view. The first member names the storage."""
        size_bytes = memoryview(data).nbytes
        for member in members:
            _check_member(member, size_bytes)
        writer = self._partitions[partition]
        writer.pad_to(TENSOR_ALIGNMENT_BYTES)
        start = writer.position
        writer.append(data)
        for member in members:
            self._tensors.append(_entry(member, partition=partition, start=start, first=members[0]))
        self._bytes_by_dtype[members[0].dtype] += size_bytes

    def add_alias(self, name: str, target: str) -> None:
        """A further name of a tensor already added (tied weights)."""
        self._aliases[name] = target

    def add_file(self, name: str, content: bytes) -> None:
        """Keep a small file as it is. Raises: InvalidInput for anything but a plain file name."""
        if not is_plain_file_name(name):
            raise InvalidInput(f"{name!r} is not a plain file name", name=name)
        self._write_file(name, content)
        self._files.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))

    def commit(self) -> Manifest:
        """Seal, fsync and rename. The same checkpoint there already is success; another is not.

        Raises: CheckpointMismatch if the destination holds other bytes, ManifestInvalid if what was added
        breaks a law of the format (a name twice, an alias of nothing).
        """
        manifest, text = sealed(self._manifest())
        parse_manifest(text)
        self._write_file(MANIFEST_NAME, text)
        with storage_errors(self._directory):
            fsync_directory(self._directory)
            try:
                os.rename(self._directory, self._destination)
            except OSError:
                if not self._destination.is_dir():
                    raise
                self._settle_with_existing(text)
            fsync_directory(self._destination.parent)
        self._discard()
        return manifest

    def _manifest(self) -> Manifest:
        partitions = []
        for index, writer in enumerate(self._partitions):
            summary = writer.finish()
            partitions.append(
                PartitionEntry(partition_name(index), summary.size_bytes, tuple(summary.chunk_crc32c))
            )
        common = self._bytes_by_dtype.most_common(1)
        return Manifest(
            format_version=FORMAT_VERSION,
            source=self._source,
            revision=self._revision,
            dtype=common[0][0] if common else "F32",
            transformers_version=self._transformers_version,
            chunk_bytes=self._chunk_bytes,
            partitions=tuple(partitions),
            tensors=tuple(self._tensors),
            aliases=MappingProxyType(dict(self._aliases)),
            files=tuple(self._files),
            digest="",
        )

    def _settle_with_existing(self, text: bytes) -> None:
        existing = self._destination / MANIFEST_NAME
        if not existing.is_file() or existing.read_bytes() != text:
            raise CheckpointMismatch(
                f"{self._destination} holds another checkpoint", path=str(self._destination)
            )

    def _write_file(self, name: str, content: bytes) -> None:
        with storage_errors(self._directory / name), (self._directory / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _discard(self) -> None:
        """Removes the temporary directory (gone already after a rename) and lets go of its lock."""
        if self._lock_fd < 0:
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()


def _check_member(member: StorageMember, size_bytes: int) -> None:
    extent = _extent(member)
    if member.offset + extent > size_bytes:
        raise InvalidInput(f"{member.name!r} takes {extent} bytes, {size_bytes} given", name=member.name)


def _extent(member: StorageMember) -> int:
    """Raises: InvalidInput for a dtype, shape or stride the format does not know."""
    if member.dtype not in BITS:
        raise InvalidInput(f"{member.name!r}: unknown dtype {member.dtype!r}", name=member.name)
    try:
        return extent_bytes(dtype=member.dtype, shape=member.shape, stride=member.stride)
    except ValueError as error:
        raise InvalidInput(f"{member.name!r}: {error}", name=member.name) from error


def _entry(member: StorageMember, *, partition: int, start: int, first: StorageMember) -> TensorEntry:
    return TensorEntry(
        name=member.name,
        partition=partition,
        offset=start + member.offset,
        size_bytes=extent_bytes(dtype=member.dtype, shape=member.shape, stride=member.stride),
        dtype=member.dtype,
        shape=member.shape,
        stride=member.stride,
        shares=None if member is first else first.name,
    )
