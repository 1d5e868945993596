"""Which files of a listing make a servable model, and which names may become paths. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping, Sequence

from firstlight.domain.errors import SourceCorrupt, SourceUnsupported
from gpu_worker.convert.sentence_layout import MODULES, POOLING
from gpu_worker.store.sources.description import Layout
from native_loader.manifest import parse_manifest

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MANIFEST = "manifest.json"
PARTITION = re.compile(r"partition-\d{1,4}\.bin")
# Beside the weights: what a tokenizer, a chat template or generation may need.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    MODULES,
)
_PICKLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# Of a folder that holds a checkpoint and other things besides, none of it is what the checkpoint needs.
_UNKEPT = (*_PICKLE, ".safetensors", ".gguf")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+ -]{0,199}")


def safe_name(name: str) -> str:
    """Let through a name that may become a file's; of those in folders, one. Raises: SourceCorrupt."""
    if name != POOLING and not _NAME.fullmatch(name):
        raise SourceCorrupt(f"the source names a file {name[:120]!r}, which is not an allowed file name")
    return name


def refuse_pickle(name: str) -> None:
    """Raises: SourceUnsupported for a file that can run code when it is opened."""
    if name.lower().endswith(_PICKLE):
        raise SourceUnsupported(
            f"{name} is a pickle file, which can run code when it is read; convert it to safetensors first"
        )


def is_looked_at(path: str) -> bool:
    """Of a listing of whole trees: what stands at its top, and the one file that stands below."""
    return "/" not in path or path == POOLING


def shards_of_index(text: bytes) -> tuple[str, ...]:
    """The weight files a safetensors index names, validated. Raises: SourceCorrupt."""
    try:
        weight_map = json.loads(text)["weight_map"]
        names = {str(name) for name in weight_map.values()}
    except (ValueError, KeyError, TypeError, AttributeError) as failure:
        raise SourceCorrupt(f"{INDEX} is not a safetensors index: {failure!r}") from failure
    if not names:
        raise SourceCorrupt(f"{INDEX} names no weight file")
    for name in names:
        refuse_pickle(name)
        if not safe_name(name).endswith(".safetensors"):
            raise SourceUnsupported(f"{INDEX} names {name}, which is not a safetensors file")
    return tuple(sorted(names))


def is_checkpoint(names: Container[str]) -> bool:
    """Whether a listing is of a checkpoint in our own format."""
    return MANIFEST in names and "partition-0.bin" in names


def files_of_manifest(text: bytes) -> tuple[str, ...]:
    """Every file that a checkpoint's manifest names, and itself. Raises: ManifestInvalid."""
    manifest = parse_manifest(text)
    return (MANIFEST, *(one.name for one in manifest.files), *(one.name for one in manifest.partitions))


def choose(names: Sequence[str], shards: Sequence[str] | None) -> tuple[Layout, tuple[str, ...]]:
    """Pick the files to fetch from the names at the top of a listing, and `POOLING` if it is there.

    `shards` are what the listing's index names, or None when it has none.
    Raises: SourceUnsupported, SourceCorrupt.
    """
    have = set(names)
    if is_checkpoint(have):
        partitions = [name for name in have if PARTITION.fullmatch(name)]
        small = [name for name in have if _NAME.fullmatch(name) and not name.lower().endswith(_UNKEPT)]
        return Layout.CHECKPOINT, tuple(sorted({*partitions, *small}))
    weights = tuple(shards) if shards is not None else _weights_without_index(have)
    if weights:
        missing = sorted({*weights, "config.json"} - have)
        if missing:
            raise SourceCorrupt(f"the source lacks {', '.join(missing[:5])}")
        small = [name for name in SMALL_FILES if name in have]
        small += [POOLING] if MODULES in have and POOLING in have else []
        index = [INDEX] if shards is not None else []
        return Layout.HUGGING_FACE, (*small, *index, *weights)
    return Layout.GGUF, (_only_gguf(have),)


def _weights_without_index(have: set[str]) -> tuple[str, ...]:
    if SINGLE in have:
        return (SINGLE,)
    others = (name for name in have if name.endswith(".safetensors"))
    return tuple(sorted(name for name in others if not name.startswith(("adapter", "consolidated"))))


def _only_gguf(have: set[str]) -> str:
    found = sorted(name for name in have if name.lower().endswith(".gguf"))
    if len(found) == 1:
        return safe_name(found[0])
    if found:
        raise SourceUnsupported(f"the source holds {len(found)} GGUF files; name one: {', '.join(found[:4])}")
    for name in sorted(have):
        refuse_pickle(name)
    raise SourceUnsupported("the source holds neither safetensors with a config.json nor a GGUF file")


def sizes_present(wanted: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Raises: SourceCorrupt when a wanted file is empty."""
    for name in wanted:
        safe_name(name)
        if sizes[name] <= 0:
            raise SourceCorrupt(f"{name} of the source is empty")
