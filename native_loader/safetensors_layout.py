"""Which files of a published model's directory matter: its shards, and the small files that are kept."""

from __future__ import annotations

import json
from pathlib import Path

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable, SourceUnsupported
from native_loader.manifest import LARGEST_FILE_BYTES
from native_loader.manifest_laws import is_plain_file_name

INDEX_NAME = "model.safetensors.index.json"
LARGEST_INDEX_BYTES = 256 << 20
KEPT_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def safetensors_files(source: Path) -> list[Path]:
    """The shards of a model directory, by its index if it has one; or the one file given.

    Raises: SourceUnreachable, SourceUnsupported (no safetensors; pickle is refused), SourceCorrupt (an index
    that is unreadable, names a path, or names a shard that is not there).
    """
    if source.is_file():
        if source.suffix in PICKLE_SUFFIXES:
            raise SourceUnsupported(f"{source} is a pickle file, which is refused", path=str(source))
        return [source]
    if not source.is_dir():
        why = "is not a plain file" if source.exists() else "does not exist"
        raise SourceUnreachable(f"{source} {why}", path=str(source))
    index = source / INDEX_NAME
    if index.is_file():
        return [source / name for name in _indexed_shards(index)]
    found = sorted(source.glob("*.safetensors"))
    if not found:
        has_pickle = any(path.suffix in PICKLE_SUFFIXES for path in source.iterdir())
        why = "only pickle files, which are refused" if has_pickle else "no safetensors files"
        raise SourceUnsupported(f"{source} holds {why}", path=str(source))
    return found


def _indexed_shards(index: Path) -> list[str]:
    if index.stat().st_size > LARGEST_INDEX_BYTES:
        raise SourceCorrupt(f"{index} is larger than any index of shards", path=str(index))
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceCorrupt(f"{index} is not an index of shards", path=str(index)) from error
    for name in names:
        if not isinstance(name, str) or not is_plain_file_name(name) or not (index.parent / name).is_file():
            raise SourceCorrupt(f"{index} names the shard {name!r}, which is not there", path=str(index))
    return sorted(names)


def kept_files(directory: Path) -> list[Path]:
    """The small files of a model directory that a checkpoint keeps: configuration and tokenizer."""
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file()
        and path.suffix in KEPT_SUFFIXES
        and not path.name.endswith(".index.json")
        and is_plain_file_name(path.name)
        and path.stat().st_size <= LARGEST_FILE_BYTES
    )
