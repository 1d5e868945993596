"""One conversion: weights and small files of a source into one committed checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from firstlight.domain.errors import SourceUnsupported
from gpu_worker.convert.execution_order import in_execution_order
from gpu_worker.convert.size import DTYPE_BYTES
from gpu_worker.convert.small_files import small_files
from gpu_worker.convert.source import locate
from gpu_worker.convert.weights import load_model
from native_loader import CheckpointWriter, Manifest

# (bytes_done, bytes_total)
Progress = Callable[[int, int], None]


def convert(
    source: Path, destination: Path, *, dtype: str, model: str, revision: str, on_progress: Progress
) -> Manifest:
    """Write the checkpoint at `destination`; there already, and the same, is success.

    Raises: SourceUnreachable, SourceUnsupported, SourceCorrupt, DiskFull, StorageError, CheckpointMismatch.
    """
    if dtype not in DTYPE_BYTES:
        raise SourceUnsupported(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    located = locate(source)
    loaded = load_model(located, dtype=getattr(torch, dtype))
    files = small_files(located, loaded)
    state = loaded.state_dict()
    names = in_execution_order(loaded)
    aliases = aliases_of(state, names)
    total = sum(state[name].nbytes for name in names if name not in aliases)
    on_progress(0, total)
    with CheckpointWriter(
        destination,
        source=model,
        revision=revision,
        transformers_version=transformers.__version__,
        expected_bytes=total,
    ) as writer:
        done = 0
        for name in names:
            if name in aliases:
                continue
            writer.add_tensor(name, state[name].contiguous())
            done += state[name].nbytes
            on_progress(done, total)
        for name, target in aliases.items():
            writer.add_alias(name, target)
        for name, content in sorted(files.items()):
            writer.add_file(name, content)
        return writer.commit()


def aliases_of(state: dict[str, torch.Tensor], names: list[str]) -> dict[str, str]:
    """Further names of tied weights: the very same view of the very same bytes."""
    first: dict[tuple[object, ...], str] = {}
    found = {}
    for name in names:
        tensor = state[name]
        # By storage, not by address: a tensor without bytes has none.
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset())
        identity = (place, tensor.shape, tensor.stride(), tensor.dtype)
        known = first.setdefault(identity, name) if tensor.nbytes else name
        if known != name:
            found[name] = known
    return found
