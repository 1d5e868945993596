"""What lies beside the weights of a checkpoint, as bytes for another process."""

from __future__ import annotations

from pathlib import Path

from firstlight.domain.errors import CheckpointError

# One gRPC message holds 64 MiB.
FILES_LIMIT_BYTES = 60 * 2**20


def small_files(directory: Path) -> dict[str, bytes]:
    """Every file but the manifest and the partitions, by name. Raises: CheckpointError when they are huge."""
    paths = [path for path in sorted(directory.iterdir()) if path.is_file() and _is_small_file(path.name)]
    total = sum(path.stat().st_size for path in paths)
    if total > FILES_LIMIT_BYTES:
        raise CheckpointError(f"the files beside the weights in {directory.name} hold {total} bytes")
    return {path.name: path.read_bytes() for path in paths}


def _is_small_file(name: str) -> bool:
    return name != "manifest.json" and not (name.startswith("partition-") and name.endswith(".bin"))
