"""The laws a manifest obeys, one function each. Arithmetic is exact, and bounded before it is used."""

from __future__ import annotations

from collections import defaultdict
from math import prod

from firstlight.domain.errors import ManifestInvalid
from native_loader.dtypes import BITS, is_packed
from native_loader.manifest import (
    LARGEST_CHUNK_BYTES,
    LARGEST_FILE_BYTES,
    MANIFEST_NAME,
    MOST_DIMENSIONS,
    PARTITION_ALIGNMENT_BYTES,
    TENSOR_ALIGNMENT_BYTES,
    Manifest,
    PartitionEntry,
    TensorEntry,
    align_up,
    partition_name,
)
from native_loader.manifest_decoder import LARGEST, fail


def check_manifest(manifest: Manifest) -> None:
    """Raises: ManifestInvalid for the first law broken."""
    _check_names(manifest)
    _check_paths(manifest)
    _check_chunks(manifest)
    _check_dtypes(manifest)
    for entry in manifest.tensors:
        _check_size(entry)
        _check_place(entry, manifest)
    _check_aliases(manifest)
    by_partition = _storages(manifest)
    for index, partition in enumerate(manifest.partitions):
        _check_layout(partition, by_partition[index])


def _check_names(manifest: Manifest) -> None:
    seen: set[str] = set()
    for name in [*(entry.name for entry in manifest.tensors), *manifest.aliases]:
        if name in seen:
            fail("duplicate_name", f"the tensor name {name!r} stands twice", name=name)
        seen.add(name)
    files = [entry.name for entry in manifest.files]
    if len(set(files)) != len(files):
        fail("duplicate_name", "a file name stands twice")


def is_plain_file_name(name: str) -> bool:
    """Whether `name` can only mean a file directly inside of the checkpoint's directory."""
    return (
        0 < len(name) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and not any(separator in name for separator in "/\\\0")
    )


def _check_paths(manifest: Manifest) -> None:
    for index, partition in enumerate(manifest.partitions):
        if partition.name != partition_name(index):
            fail("bad_path", f"partition {index} is called {partition.name!r}", name=partition.name)
    for entry in manifest.files:
        is_ours = entry.name == MANIFEST_NAME or entry.name.startswith("partition-")
        if entry.size_bytes > LARGEST_FILE_BYTES:
            fail("wrong_size", f"{entry.name!r} exceeds {LARGEST_FILE_BYTES} bytes", name=entry.name)
        if is_ours or not is_plain_file_name(entry.name):
            fail("bad_path", f"{entry.name!r} is not a plain file name", name=entry.name)


def _check_chunks(manifest: Manifest) -> None:
    chunk_bytes = manifest.chunk_bytes
    if chunk_bytes > LARGEST_CHUNK_BYTES:
        fail("bad_chunks", f"chunks of {chunk_bytes} bytes exceed {LARGEST_CHUNK_BYTES}")
    if chunk_bytes == 0 or chunk_bytes % PARTITION_ALIGNMENT_BYTES:
        fail("bad_chunks", f"chunks of {chunk_bytes} bytes are not a multiple of {PARTITION_ALIGNMENT_BYTES}")
    for partition in manifest.partitions:
        expected = -(-partition.size_bytes // chunk_bytes)
        if len(partition.chunk_crc32c) != expected:
            fail(
                "bad_chunks", f"{partition.name} has {len(partition.chunk_crc32c)} checksums, not {expected}"
            )
        if any(crc >= 2**32 for crc in partition.chunk_crc32c):
            fail("bad_chunks", f"a checksum of {partition.name} exceeds 32 bits")


def _check_dtypes(manifest: Manifest) -> None:
    if manifest.dtype not in BITS:
        fail("bad_dtype", f"the checkpoint's dtype is {manifest.dtype!r}", dtype=manifest.dtype)
    for entry in manifest.tensors:
        if entry.dtype not in BITS:
            fail("bad_dtype", f"{entry.name!r} is of unknown dtype {entry.dtype!r}", dtype=entry.dtype)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements; a dimension of zero counts as one, as torch has it."""
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def extent_bytes(*, dtype: str, shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Bytes from the first to the last one touched; 0 for a tensor without elements.

    Raises: ValueError if the figures do not go together (rank, packing).
    """
    if len(shape) != len(stride):
        raise ValueError("shape and stride are of different length")
    if 0 in shape:
        return 0
    if is_packed(dtype):
        bits = prod(shape) * BITS[dtype]
        if bits % 8 or stride != contiguous_stride(shape):
            raise ValueError("packed elements must be contiguous and fill whole bytes")
        return bits // 8
    last = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return (last + 1) * BITS[dtype] // 8


def _check_size(entry: TensorEntry) -> None:
    if len(entry.shape) > MOST_DIMENSIONS or len(entry.stride) > MOST_DIMENSIONS:
        fail("overflow", f"{entry.name!r} has more than {MOST_DIMENSIONS} dimensions", name=entry.name)
    if prod(entry.shape) > LARGEST:
        fail("overflow", f"{entry.name!r} has more than 2^63 - 1 elements", name=entry.name)
    try:
        expected = extent_bytes(dtype=entry.dtype, shape=entry.shape, stride=entry.stride)
    except ValueError as error:
        raise ManifestInvalid(
            f"manifest: {entry.name!r}: {error}", rule="wrong_size", name=entry.name
        ) from error
    if expected > LARGEST or entry.offset > LARGEST - entry.size_bytes:
        fail("overflow", f"{entry.name!r} ends beyond 2^63 - 1", name=entry.name)
    if entry.size_bytes != expected:
        fail("wrong_size", f"{entry.name!r} takes {expected} bytes, not {entry.size_bytes}", name=entry.name)


def _check_place(entry: TensorEntry, manifest: Manifest) -> None:
    if entry.partition >= len(manifest.partitions):
        fail("out_of_file", f"{entry.name!r} lies in partition {entry.partition}", name=entry.name)
    partition = manifest.partitions[entry.partition]
    if entry.offset + entry.size_bytes > partition.size_bytes:
        fail("out_of_file", f"{entry.name!r} ends beyond {partition.name}", name=entry.name)


def _check_aliases(manifest: Manifest) -> None:
    entries = {entry.name: entry for entry in manifest.tensors}
    for alias, target in manifest.aliases.items():
        if target not in entries:
            fail("bad_alias", f"alias {alias!r} names {target!r}, which is no tensor", name=alias)
    for entry in manifest.tensors:
        if entry.shares is None:
            continue
        root = entries.get(entry.shares)
        if root is None or root.shares is not None or root.partition != entry.partition:
            fail("bad_alias", f"{entry.name!r} cannot share storage with {entry.shares!r}", name=entry.name)


def _storages(manifest: Manifest) -> defaultdict[int, list[list[TensorEntry]]]:
    """Per partition: its storages, each as the list of tensors that overlap in it."""
    groups: dict[str, list[TensorEntry]] = {
        entry.name: [entry] for entry in manifest.tensors if not entry.shares
    }
    for entry in manifest.tensors:
        if entry.shares:
            groups[entry.shares].append(entry)
    by_partition: defaultdict[int, list[list[TensorEntry]]] = defaultdict(list)
    for members in groups.values():
        by_partition[members[0].partition].append(sorted(members, key=lambda e: e.offset))
    return by_partition


def _check_layout(partition: PartitionEntry, storages: list[list[TensorEntry]]) -> None:
    """Storages follow each other without a hole: whatever bytes a file has, a tensor accounts for them."""
    spans = sorted((members[0].offset, _check_storage(members), members[0].name) for members in storages)
    end = 0
    for start, span_end, name in spans:
        expected = align_up(end, TENSOR_ALIGNMENT_BYTES)
        if start < end:
            fail("overlap", f"{name!r} overlaps with the tensor before it", name=name)
        if start != expected:
            fail("gap", f"{name!r} begins at {start}, not at {expected}", name=name)
        end = span_end
    padded = align_up(end, PARTITION_ALIGNMENT_BYTES)
    if partition.size_bytes > padded:
        fail("gap", f"{partition.name} has {partition.size_bytes - padded} bytes no tensor accounts for")
    if partition.size_bytes < padded:
        fail("wrong_size", f"{partition.name} is not padded to {PARTITION_ALIGNMENT_BYTES} bytes")


def _check_storage(members: list[TensorEntry]) -> int:
    """Sharing tensors overlap in one piece, each on a multiple of its element. Answers where they end."""
    end = members[0].offset
    for entry in members:
        if entry.offset > end or (entry.offset == end and entry is not members[0]):
            fail("gap", f"{entry.name!r} does not overlap with the storage it shares", name=entry.name)
        if entry.offset % max(BITS[entry.dtype] // 8, 1):
            fail("wrong_size", f"{entry.name!r} is not aligned to its element", name=entry.name)
        end = max(end, entry.offset + entry.size_bytes)
    return end
