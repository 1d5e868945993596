"""The loader by itself, without a store: save, load, load into a module."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.domain.errors import AttachFailed, SourceCorrupt, SourceUnreachable, SourceUnsupported
from native_loader._native import Arena, LoadJob
from native_loader.execution_order import execution_order
from native_loader.manifest import Manifest
from native_loader.manifest_laws import is_plain_file_name
from native_loader.reader import open_checkpoint
from native_loader.safetensors_source import SafetensorsFile
from native_loader.writer import CheckpointWriter

if TYPE_CHECKING:
    import torch

KEPT_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
LARGEST_KEPT_BYTES = 256 << 20
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load_state_dict(path: Path, *, threads: int = 4) -> dict[str, torch.Tensor]:
    """Read a checkpoint into private memory, every byte verified. The tensors are writable.

    Raises: CheckpointMissing, ManifestInvalid, ChecksumMismatch, ReadFailed, PoolFull.
    """
    checkpoint = open_checkpoint(path)
    offsets, total_bytes = checkpoint.manifest.arena_offsets()
    with Arena(total_bytes, kind="anonymous") as arena:
        if checkpoint.size_bytes:
            LoadJob(arena, checkpoint.segments(offsets), threads=threads, populate=True).result()
        buffers = [
            arena.buffer(offset, partition.size_bytes)
            for offset, partition in zip(offsets, checkpoint.manifest.partitions, strict=True)
        ]
    return checkpoint.bind(buffers)


def load_into(module: torch.nn.Module, path: Path, *, threads: int = 4) -> None:
    """Give a module (which may be on the meta device) the checkpoint's tensors; ties stay ties.

    Raises: AttachFailed if names or shapes differ, or what `load_state_dict` raises.
    """
    ties = _tied_parameters(module)
    state = load_state_dict(path, threads=threads)
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise AttachFailed(f"{path} does not fit the module: {error}", path=str(path)) from error
    for name, first in ties.items():  # assign=True made a parameter of its own for each name
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, module.get_parameter(first))


def _tied_parameters(module: torch.nn.Module) -> dict[str, str]:
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        if known != name:
            ties[name] = known
    return ties


def save_checkpoint(
    source: Mapping[str, torch.Tensor] | torch.nn.Module | Path,
    destination: Path,
    *,
    origin: str = "local",
    revision: str = "local",
    transformers_version: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Write a state dict, a module's state, or a directory (or file) of safetensors as a checkpoint.

    Tensors of a module or state dict keep their order; those of safetensors, which is alphabetical, are put
    into execution order. `files` are kept beside them; a directory's own small files are kept too.
    Raises: DiskFull, CheckpointMismatch, SourceUnsupported (pickle), SourceCorrupt.
    """
    with CheckpointWriter(
        destination, source=origin, revision=revision, transformers_version=transformers_version
    ) as writer:
        if isinstance(source, Path):
            _add_safetensors(writer, source)
        else:
            _add_state_dict(writer, source if isinstance(source, Mapping) else source.state_dict())
        for name, content in (files or {}).items():
            writer.add_file(name, content)
        return writer.commit()


def _add_state_dict(writer: CheckpointWriter, state: Mapping[str, torch.Tensor]) -> None:
    from native_loader.torch_source import group_tensors

    groups, aliases = group_tensors(state)
    for group in groups:
        writer.add_storage(group.memory(), group.members())
    for alias, target in aliases.items():
        writer.add_alias(alias, target)


def _add_safetensors(writer: CheckpointWriter, source: Path) -> None:
    with ExitStack() as stack:
        owner: dict[str, SafetensorsFile] = {}
        for path in safetensors_files(source):
            shard = stack.enter_context(SafetensorsFile(path))
            for name in shard.tensors:
                if name in owner:
                    raise SourceCorrupt(f"{name!r} stands in two shards of {source}", name=name)
                owner[name] = shard
        for name in execution_order(owner):
            tensor = owner[name].tensors[name]
            with owner[name].buffer(name) as data:
                writer.add_tensor(name, data, dtype=tensor.dtype, shape=tensor.shape)
    if source.is_dir():
        for path in kept_files(source):
            writer.add_file(path.name, path.read_bytes())


def kept_files(directory: Path) -> list[Path]:
    """The small files of a model directory that a checkpoint keeps: configuration and tokenizer."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file()
        and path.suffix in KEPT_SUFFIXES
        and not path.name.endswith(".index.json")
        and is_plain_file_name(path.name)
        and path.stat().st_size <= LARGEST_KEPT_BYTES
    )


def safetensors_files(source: Path) -> list[Path]:
    """The shards of a model directory, by its index if it has one; or the one file given.

    Raises: SourceUnreachable, SourceUnsupported (no safetensors; pickle is refused), SourceCorrupt (an index
    that is unreadable, names a path, or names a shard that is not there).
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise SourceUnreachable(f"{source} does not exist", path=str(source))
    index = source / "model.safetensors.index.json"
    if index.is_file():
        return [source / name for name in _indexed_shards(index)]
    found = sorted(source.glob("*.safetensors"))
    if not found:
        has_pickle = any(path.suffix in PICKLE_SUFFIXES for path in source.iterdir())
        why = "only pickle files, which are refused" if has_pickle else "no safetensors files"
        raise SourceUnsupported(f"{source} holds {why}", path=str(source))
    return found


def _indexed_shards(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceCorrupt(f"{index} is not an index of shards", path=str(index)) from error
    for name in names:
        if not isinstance(name, str) or not is_plain_file_name(name) or not (index.parent / name).is_file():
            raise SourceCorrupt(f"{index} names the shard {name!r}, which is not there", path=str(index))
    return sorted(names)
