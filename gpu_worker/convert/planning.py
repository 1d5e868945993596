"""From a model's headers and configuration to a plan of its conversion. No weight is read.

transformers itself loads the model, on tensors without bytes that remember where they come from: mappings of
keys, fused experts, ties and types kept in float32 are its own, not guessed again here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, AutoConfig

from firstlight.domain.errors import SourceCorrupt, SourceUnsupported
from gpu_worker.convert.conversion import aliases_of
from gpu_worker.convert.execution_order import in_execution_order
from gpu_worker.convert.gguf_following import Unfollowed, following_gguf
from gpu_worker.convert.origins import NotStreamable, Origin, gguf_origins, safetensors_origins
from gpu_worker.convert.provenance import Provenance, Runs
from gpu_worker.convert.quick_gguf import use_quick_reader
from gpu_worker.convert.small_files import model_files
from gpu_worker.convert.source import ModelSource, locate
from gpu_worker.convert.stream_plan import (
    CASTABLE,
    Piece,
    StreamPlan,
    file_entry,
    merged,
    unchecked,
)
from gpu_worker.convert.weights import has_head, load_model, require_complete
from gpu_worker.engine.architectures import require_supported
from native_loader.dtypes import BITS, dtype_name, torch_dtype
from native_loader.manifest import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    PARTITION_ALIGNMENT_BYTES,
    TENSOR_ALIGNMENT_BYTES,
    Manifest,
    PartitionEntry,
    TensorEntry,
    align_up,
    partition_name,
)

__all__ = ["NotStreamable", "plan"]

_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
# Rows of all the permuted weights of a very large model; beyond it a plan costs more than it saves.
MOST_PIECES = 2_000_000
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, SafetensorError)


def plan(directory: Path, *, dtype: str, model: str, revision: str) -> StreamPlan:
    """Plan the conversion of a Hugging Face layout whose safetensors may be headers over holes.

    Raises: NotStreamable; SourceCorrupt, SourceUnsupported as the conversion itself would.
    """
    source = locate(directory)
    following = Provenance()
    if source.gguf_name is not None:
        origins = gguf_origins(source.directory / source.gguf_name)
        loaded = _gguf_loaded(source, following, getattr(torch, dtype))
    else:
        origins = safetensors_origins(source)
        loaded = _loaded(source, origins, following, getattr(torch, dtype))
    # Any: transformers' models are untyped.
    state: dict[str, Any] = loaded.state_dict()
    names = _in_execution_order(loaded)
    aliases = aliases_of(state, names)
    tensors, pieces, end = [], [], 0
    for name in (name for name in names if name not in aliases):
        start = align_up(end, TENSOR_ALIGNMENT_BYTES)
        entry = _entry(name, state[name], start)
        pieces += _pieces(entry, following.runs_of(state[name]), origins)
        tensors.append(entry)
        end = start + entry.size_bytes
        if len(pieces) > MOST_PIECES:
            raise NotStreamable("its weights stand scattered in the source")
    size_bytes = align_up(end, PARTITION_ALIGNMENT_BYTES)
    files = model_files(source, loaded)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        source=model,
        revision=revision,
        dtype=_most_common(tensors),
        transformers_version=transformers.__version__,
        chunk_bytes=CHUNK_BYTES,
        partitions=(PartitionEntry(partition_name(0), size_bytes, ()),),
        tensors=tuple(tensors),
        aliases=MappingProxyType(aliases),
        files=tuple(file_entry(name, content) for name, content in sorted(files.items())),
        digest="",
    )
    return StreamPlan(unchecked(manifest), merged(pieces), tuple(sorted(files.items())))


# Any: transformers' models are untyped.
def _gguf_loaded(source: ModelSource, following: Provenance, dtype: torch.dtype) -> Any:
    """With everything of `load_model` but the weights."""
    assert source.gguf_name is not None
    use_quick_reader()
    try:
        with _in_this_thread(), following, following_gguf(source.directory / source.gguf_name, following):
            return load_model(source, dtype=dtype, device="meta")
    except (Unfollowed, AttributeError) as failure:
        raise NotStreamable(f"what becomes of its weights cannot be foreseen: {failure}") from failure
    except SourceCorrupt as failure:
        # Of a stand-in that was asked for more than it knows: a conversion of the whole will tell.
        if isinstance(failure.__cause__, TypeError | RuntimeError):
            raise NotStreamable(
                f"what becomes of its weights cannot be foreseen: {failure.message}"
            ) from failure
        raise


# Any: transformers' models are untyped.
def _loaded(
    source: ModelSource, origins: dict[str, Origin], following: Provenance, dtype: torch.dtype
) -> Any:
    try:
        config = AutoConfig.from_pretrained(source.directory, trust_remote_code=False, local_files_only=True)
    except _UNREADABLE as failure:
        raise SourceCorrupt(f"the model's configuration cannot be read: {failure}") from failure
    require_supported(config.to_dict())
    kind = (MODEL_FOR_CAUSAL_LM_MAPPING if has_head(source) else MODEL_MAPPING).get(type(config), None)
    if kind is None:
        raise SourceUnsupported(f"transformers has no causal model for {type(config).__name__}")
    state = {
        name: following.source(name, shape=origin.shape, dtype=torch_dtype(origin.dtype))
        for name, origin in origins.items()
    }
    try:
        with _in_this_thread(), following:
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except _UNREADABLE as failure:
        raise SourceCorrupt(f"the weights cannot be read: {failure}") from failure
    require_complete(report)
    return model.eval()


@contextmanager
def _in_this_thread() -> Iterator[None]:
    """transformers casts weights in threads of its own, where nobody would follow them."""
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before


# Any: transformers' models are untyped.
def _in_execution_order(model: Any) -> list[str]:
    # The other ways to run experts look at values, and there are none here.
    model.config._experts_implementation = "batched_mm"
    tokens = torch.zeros((1, 1), dtype=torch.int64, device="meta")
    mask = torch.zeros((1, 1, 1, 1), dtype=torch.float32, device="meta")
    attempts: list[Callable[[], list[str]]] = [
        # With a mask of this form nobody asks whether all of it is set.
        lambda: in_execution_order(model, input_ids=tokens, attention_mask=mask),
        lambda: in_execution_order(model, input_ids=tokens),
    ]
    for attempt in attempts:
        try:
            return attempt()
        except (RuntimeError, ValueError, NotImplementedError) as failure:
            reason = failure
    raise NotStreamable(f"its order of execution shows only with weights: {reason}") from reason


def _entry(name: str, tensor: torch.Tensor, start: int) -> TensorEntry:
    if not tensor.is_contiguous():
        raise NotStreamable(f"{name} is stored in another order than it is used in")
    return TensorEntry(
        name=name,
        partition=0,
        offset=start,
        size_bytes=tensor.nbytes,
        dtype=dtype_name(tensor.dtype),
        shape=tuple(tensor.shape),
        stride=tuple(tensor.stride()),
    )


def _pieces(entry: TensorEntry, runs: Runs | None, origins: dict[str, Origin]) -> list[Piece]:
    if runs is None:
        raise NotStreamable(f"{entry.name} is computed, not copied, from the source's tensors")
    found, start = [], entry.offset
    for run in runs:
        origin = origins[run.source]
        if BITS[origin.dtype] % 8:
            raise NotStreamable(f"{entry.name} has elements of less than a byte")
        dtypes, block = origin.types(run.dtypes), origin.block
        if len(dtypes) > 1 and not CASTABLE.issuperset(dtypes if block.elements == 1 else dtypes[1:]):
            raise NotStreamable(f"{entry.name} is cast from {dtypes[0]}")
        if run.start % block.elements or run.length % block.elements:
            raise NotStreamable(f"{entry.name} is made of parts of packed blocks")
        size_bytes = run.length * run.dtype.itemsize
        at = origin.offset + run.start // block.elements * block.size_bytes
        source_bytes = run.length // block.elements * block.size_bytes
        found.append(Piece(0, start, size_bytes, origin.file, at, source_bytes, dtypes))
        start += size_bytes
    return found


def _most_common(tensors: list[TensorEntry]) -> str:
    """As the writer tells it: the type that most bytes have, the first of equals."""
    counted: Counter[str] = Counter()
    for entry in tensors:
        counted[entry.dtype] += entry.size_bytes
    common = counted.most_common(1)
    return common[0][0] if common else "F32"
