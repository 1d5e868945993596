"""A source that is a checkpoint already: its bytes are taken as they are, each chunk against its checksum."""

from __future__ import annotations

import hashlib

from firstlight.domain.errors import ChecksumMismatch, SourceCorrupt, SourceUnsupported
from gpu_worker.convert.stream_plan import Piece, StreamPlan
from gpu_worker.store.sources import Source, SourceDescription, SourceFile
from native_loader.manifest import MANIFEST_NAME, Manifest, parse_manifest

_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


async def fetch_manifest(source: Source, description: SourceDescription) -> Manifest:
    """Validated, and in accord with what the source lists. Raises: ManifestInvalid, SourceCorrupt."""
    files = {file.name: file for file in description.files}
    text = await source.read_range(files[MANIFEST_NAME], start=0, size_bytes=files[MANIFEST_NAME].size_bytes)
    manifest = parse_manifest(bytes(text))
    expected = {one.name: one.size_bytes for one in manifest.partitions}
    expected |= {one.name: one.size_bytes for one in manifest.files}
    for name, size_bytes in expected.items():
        if (file := files.get(name)) is None or file.size_bytes != size_bytes:
            found = "nothing" if file is None else f"{file.size_bytes} bytes"
            raise SourceCorrupt(f"the source has {found} for {name}, its manifest says {size_bytes} bytes")
    return manifest


def native_plan(manifest: Manifest, *, dtype: str) -> StreamPlan:
    """Raises: SourceUnsupported when the checkpoint was made in another type than is asked for."""
    if _NAMES.get(manifest.dtype, dtype) != dtype:
        raise SourceUnsupported(
            f"the source is a checkpoint of {_NAMES[manifest.dtype]} and cannot be had as {dtype}"
        )
    pieces = tuple(
        Piece(index, 0, one.size_bytes, one.name, 0, one.size_bytes)
        for index, one in enumerate(manifest.partitions)
        if one.size_bytes
    )
    return StreamPlan(manifest, pieces, has_checksums=True)


async def fetch_native_file(source: Source, manifest: Manifest, file: SourceFile) -> bytes:
    """One small file, as its manifest has it. Raises: ChecksumMismatch when it differs twice."""
    wanted = {entry.name: entry.sha256 for entry in manifest.files}[file.name]
    for _ in range(2):
        data = bytes(await source.read_range(file, start=0, size_bytes=file.size_bytes))
        if hashlib.sha256(data).hexdigest() == wanted:
            return data
    raise ChecksumMismatch(f"{file.name} of the source differs from its checksum, twice", path=file.name)
