"""The files by which sentence-transformers says how a model embeds: `modules.json` and its pooling's own.

They name Python classes. None is ever imported: the few that are known are known by name, and a source that
names another is refused, because its vectors would be others than its authors meant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from firstlight.domain.embedding import Pooling
from firstlight.domain.errors import SourceCorrupt, SourceUnsupported
from gpu_worker.convert.source import ModelSource

MODULES = "modules.json"
_POOLING_FOLDER = "1_Pooling"
POOLING = f"{_POOLING_FOLDER}/config.json"

_PACKAGE = "sentence_transformers."
_KNOWN = (("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))
_MODE = "pooling_mode"
# The flags of a pooling's config.json that older releases write, and what they mean.
_FLAGS = {
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_cls_token": Pooling.FIRST,
}
_HEADS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True)
class SentenceLayout:
    """`size` as its pooling tells it, if it does. `has_head`: its weights are those of a causal model."""

    pooling: Pooling
    normalizes: bool
    size: int | None
    has_head: bool


def sentence_layout(source: ModelSource) -> SentenceLayout | None:
    """None for a model that does not say that it embeds. Raises: SourceCorrupt, SourceUnsupported."""
    if source.gguf_name is not None or not (source.directory / MODULES).is_file():
        return None
    kinds = _kinds(_read(source, MODULES))
    pooling = _read(source, POOLING)
    if not isinstance(pooling, dict):
        raise SourceCorrupt(f"{POOLING} is not a JSON object")
    size = pooling.get("word_embedding_dimension", pooling.get("embedding_dimension"))
    named = source.config().get("architectures")
    architectures = named if isinstance(named, list) else []
    return SentenceLayout(
        pooling=_pooling(pooling),
        normalizes="Normalize" in kinds,
        size=size if isinstance(size, int) else None,
        has_head=any(str(name).endswith(_HEADS) for name in architectures),
    )


# Any: decoded JSON, looked at by the caller.
def _read(source: ModelSource, name: str) -> Any:
    try:
        return json.loads((source.directory / name).read_bytes())
    except (OSError, ValueError) as failure:
        raise SourceCorrupt(f"{name} cannot be read: {failure}") from failure


# Any: decoded JSON.
def _kinds(modules: Any) -> tuple[str, ...]:
    try:
        rows = [(str(row["type"]), str(row["path"])) for row in modules]
    except (KeyError, TypeError) as failure:
        raise SourceCorrupt(f"{MODULES} is not a list of modules: {failure!r}") from failure
    for name, _ in rows:
        if not name.startswith(_PACKAGE):
            raise SourceUnsupported(f"{MODULES} names {name[:120]!r}; code of a source is never run")
    kinds = tuple(name.rpartition(".")[2] for name, _ in rows)
    if kinds not in _KNOWN:
        raise SourceUnsupported(f"embeddings made by {', '.join(kinds)[:200] or 'nothing'} are not served")
    if [path for _, path in rows[:2]] != ["", _POOLING_FOLDER]:
        raise SourceUnsupported(f"{MODULES} keeps the model or its pooling in an unusual folder")
    return kinds


def _pooling(config: dict[str, Any]) -> Pooling:
    chosen = [name for name, value in config.items() if name.startswith(f"{_MODE}_") and value is True]
    if isinstance(mode := config.get(_MODE), str):
        known = [each for each in Pooling if each == mode]
    else:
        known = [_FLAGS[name] for name in chosen if name in _FLAGS] if len(chosen) == 1 else []
    if len(known) != 1:
        said = mode if isinstance(mode, str) else ", ".join(chosen)
        raise SourceUnsupported(
            f"pooling {said[:200] or 'by nothing'} is not served, only {', '.join(Pooling)}"
        )
    return known[0]
