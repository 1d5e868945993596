"""The end of a streamed download: a manifest with checksums, files beside it, all of it on the device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from firstlight.domain.embedding import EMBEDDING_FILE
from gpu_worker.convert.stream_plan import StreamPlan, file_entry, unchecked
from gpu_worker.store.streaming.partition_files import storage_error
from native_loader.load_order import chunks_in_order
from native_loader.manifest import MANIFEST_NAME, Manifest, PartitionEntry, parse_manifest, sealed

# What a model is built from, beside its weights.
_BUILT_FROM = ("config.json", "generation_config.json", EMBEDDING_FILE)


def finished_manifest(
    plan: StreamPlan, crc32c: Mapping[int, int], files: Mapping[str, bytes]
) -> tuple[Manifest, bytes]:
    """With every checksum, and its text. Raises: ManifestInvalid."""
    draft = plan.manifest
    sums: list[list[int]] = [[] for _ in draft.partitions]
    chunks = chunks_in_order([one.size_bytes for one in draft.partitions], draft.chunk_bytes)
    for index, chunk in enumerate(chunks):
        # In the order of a load, the chunks of one partition still stand in their own.
        sums[chunk.partition].append(crc32c[index])
    partitions = tuple(
        PartitionEntry(one.name, one.size_bytes, tuple(found))
        for one, found in zip(draft.partitions, sums, strict=True)
    )
    entries = tuple(file_entry(name, content) for name, content in sorted(files.items()))
    if plan.has_checksums:
        entries = draft.files  # in the order its maker gave them, which its digest covers
    manifest, text = sealed(replace(draft, partitions=partitions, files=entries))
    parse_manifest(text)
    return manifest, text


def write_files(directory: Path, files: Mapping[str, bytes], manifest_text: bytes) -> None:
    """Beside the partitions; the manifest last. Raises: DiskFull, StorageError."""
    try:
        for name, content in (*files.items(), (MANIFEST_NAME, manifest_text)):
            with (directory / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError as failure:
        raise storage_error(failure, directory) from failure


def write_small(folder: Path, files: Mapping[str, bytes]) -> None:
    """For readers of now, not for ever: nothing is synced. Raises: StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as failure:
        raise storage_error(failure, folder) from failure


def offer_folder(plan: StreamPlan, files: Mapping[str, bytes], folder: Path, *, chunk_bytes: int) -> None:
    """What a reader opens before all is there: the layout without checksums, over partitions of holes.

    `chunk_bytes` are those of the board that it will watch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: content for name, content in files.items() if name in _BUILT_FROM}
    entries = tuple(file_entry(name, content) for name, content in sorted(known.items()))
    manifest = unchecked(replace(plan.manifest, files=entries, chunk_bytes=chunk_bytes))
    _, text = sealed(manifest)
    for name, content in known.items():
        (folder / name).write_bytes(content)
    for partition in plan.manifest.partitions:
        with (folder / partition.name).open("wb") as file:
            os.ftruncate(file.fileno(), partition.size_bytes)
    (folder / MANIFEST_NAME).write_bytes(text)
