"""The loader by itself, without a store: save, load, load into a module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.domain.errors import AttachFailed, SourceCorrupt
from native_loader.execution_order import execution_order
from native_loader.loading import Loading
from native_loader.manifest import MANIFEST_NAME, Manifest
from native_loader.paths import StrPath
from native_loader.reader import open_checkpoint
from native_loader.safetensors_layout import PICKLE_SUFFIXES, kept_files, safetensors_files
from native_loader.safetensors_loading import open_safetensors
from native_loader.safetensors_source import SafetensorsFile
from native_loader.verification import Progress
from native_loader.writer import CheckpointWriter

if TYPE_CHECKING:
    import torch

__all__ = [
    "PICKLE_SUFFIXES",
    "begin_load",
    "kept_files",
    "load_into",
    "load_state_dict",
    "safetensors_files",
    "save_checkpoint",
]


def begin_load(path: StrPath, *, threads: int | None = None) -> Loading:
    """Start loading a checkpoint, or a file or directory of safetensors; the tensors are bound at once.

    Raises: CheckpointMissing, ManifestInvalid; SourceUnreachable, SourceUnsupported, SourceCorrupt for
    safetensors; ReadFailed, PoolFull, AttachFailed.
    """
    if is_safetensors(Path(path)):
        return open_safetensors(path).begin(threads=threads)
    return open_checkpoint(path).begin(threads=threads)


def is_safetensors(path: Path) -> bool:
    """Whether this is to be read as others' files: a file, or a directory of them without a manifest."""
    if path.is_dir():
        return not os.path.lexists(path / MANIFEST_NAME) and any(path.glob("*.safetensors"))
    return path.is_file()


def load_state_dict(path: StrPath, *, threads: int | None = None) -> dict[str, torch.Tensor]:
    """Read a checkpoint (or safetensors) into private memory. The tensors are writable.

    Every byte of a checkpoint is verified; safetensors have no checksums.
    Raises: what `begin_load` raises, and ChecksumMismatch.
    """
    return begin_load(path, threads=threads).result()


def load_into(module: torch.nn.Module, path: StrPath, *, threads: int | None = None) -> None:
    """Give a module (which may be on the meta device) the tensors of a checkpoint or of safetensors.

    Nothing is copied: the module's parameters are what was loaded. Ties stay ties, and a tied name may be
    absent, as published models have it. Buffers that a module does not save stay as they are.
    Raises: AttachFailed if names or shapes differ, or what `load_state_dict` raises.
    """
    ties = _tied_parameters(module)
    state = load_state_dict(path, threads=threads)
    for name, first in ties.items():
        if name in state or first in state:
            known = state.get(first, state.get(name))
            assert known is not None
            state.setdefault(name, known)
            state.setdefault(first, known)
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
    source: Mapping[str, torch.Tensor] | torch.nn.Module | StrPath,
    destination: StrPath,
    *,
    origin: str = "local",
    revision: str = "local",
    transformers_version: str | None = None,
    files: Mapping[str, bytes] | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Write a state dict, a module's state, or a directory (or file) of safetensors as a checkpoint.

    Tensors of a module or state dict keep their order; those of safetensors, which is alphabetical, are put
    into execution order, and copied one by one, never in memory as a whole. `files` are kept beside them; a
    directory's own small files are kept too.
    Raises: DiskFull, CheckpointMismatch, SourceUnsupported (pickle), SourceCorrupt.
    """
    report = on_progress or (lambda bytes_done, bytes_total: None)
    with CheckpointWriter(
        Path(destination), source=origin, revision=revision, transformers_version=transformers_version
    ) as writer:
        if isinstance(source, str | os.PathLike):
            _add_safetensors(writer, Path(source), report)
        else:
            state = source if isinstance(source, Mapping) else source.state_dict()
            _add_state_dict(writer, state, report)
        for name, content in (files or {}).items():
            writer.add_file(name, content)
        return writer.commit()


def _add_state_dict(
    writer: CheckpointWriter, state: Mapping[str, torch.Tensor], on_progress: Progress
) -> None:
    from native_loader.torch_source import group_tensors

    groups, aliases = group_tensors(state)
    total, done = sum(group.size_bytes for group in groups), 0
    on_progress(done, total)
    for group in groups:
        writer.add_storage(group.memory(), group.members())
        done += group.size_bytes
        on_progress(done, total)
    for alias, target in aliases.items():
        writer.add_alias(alias, target)


def _add_safetensors(writer: CheckpointWriter, source: Path, on_progress: Progress) -> None:
    with ExitStack() as stack:
        owner: dict[str, SafetensorsFile] = {}
        for path in safetensors_files(source):
            shard = stack.enter_context(SafetensorsFile(path))
            for name in shard.tensors:
                if name in owner:
                    raise SourceCorrupt(f"{name!r} stands in two shards of {source}", name=name)
                owner[name] = shard
        total, done = sum(file.tensors[name].size_bytes for name, file in owner.items()), 0
        on_progress(done, total)
        for name in execution_order(owner):
            tensor = owner[name].tensors[name]
            writer.add_pieces(name, owner[name].pieces(name), dtype=tensor.dtype, shape=tensor.shape)
            done += tensor.size_bytes
            on_progress(done, total)
    if source.is_dir():
        for path in kept_files(source):
            writer.add_file(path.name, path.read_bytes())
