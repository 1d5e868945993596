"""The small files that stand beside the weights: configuration, pooling, tokenizer, chat template."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from firstlight.domain.embedding import EMBEDDING_FILE, Embedding, embedding_json
from firstlight.domain.errors import SourceCorrupt
from gpu_worker.convert.sentence_layout import sentence_layout
from gpu_worker.convert.source import ModelSource

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
# Written by transformers about the machine that saved the file, or naming code of the source.
_NOT_KEPT = frozenset({"is_local", "local_files_only", "auto_map", "name_or_path"})


# Any: transformers' models are untyped.
def small_files(source: ModelSource, model: Any) -> dict[str, bytes]:
    """Name to content, ready to be kept in a checkpoint. Raises: SourceCorrupt."""
    return model_files(source, model) | tokenizer_files(source)


def model_files(source: ModelSource, model: Any) -> dict[str, bytes]:
    """Those that a model is built from."""
    return {"config.json": _config(model), **_generation_config(source, model), **_embedding(source, model)}


def tokenizer_files(source: ModelSource) -> dict[str, bytes]:
    """The tokenizer's. Raises: SourceCorrupt."""
    if (source.directory / "tokenizer.json").is_file() and source.gguf_name is None:
        return _tokenizer_files(source.directory)
    with tempfile.TemporaryDirectory() as scratch:
        if not _save_tokenizer(source, Path(scratch)):
            return {}
        return _tokenizer_files(Path(scratch))


def _config(model: Any) -> bytes:
    """Of the model as it was loaded: what is bound later is what was converted now."""
    config = model.config.to_dict()
    return _encoded({key: value for key, value in config.items() if key != "_name_or_path"})


def _generation_config(source: ModelSource, model: Any) -> dict[str, bytes]:
    path = source.directory / "generation_config.json"
    if source.gguf_name is None:
        return {path.name: path.read_bytes()} if path.is_file() else {}
    return {path.name: _encoded(json.loads(model.generation_config.to_json_string()))}


def _embedding(source: ModelSource, model: Any) -> dict[str, bytes]:
    if (layout := sentence_layout(source)) is None:
        return {}
    # Of what goes into the layers; not every architecture calls it the same, or gives it its hidden size.
    size = int(model.get_input_embeddings().embedding_dim)
    if layout.size not in (None, size):
        raise SourceCorrupt(f"its pooling makes vectors of {layout.size} figures, the model of {size}")
    embedding = Embedding(
        pooling=layout.pooling, normalizes=layout.normalizes, size=size, generates=layout.has_head
    )
    return {EMBEDDING_FILE: embedding_json(embedding)}


def _save_tokenizer(source: ModelSource, destination: Path) -> bool:
    """Have transformers write a tokenizer.json from what the source has; False if it has none."""
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    has_vocabulary = any(
        (source.directory / name).is_file() for name in ("vocab.json", "tokenizer.model", "spiece.model")
    )
    if source.gguf_name is not None:
        options["gguf_file"] = source.gguf_name
    elif not has_vocabulary:
        return False
    try:
        AutoTokenizer.from_pretrained(source.directory, **options).save_pretrained(destination)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as failure:
        raise SourceCorrupt(f"the tokenizer cannot be read: {failure}") from failure
    return True


def _tokenizer_files(directory: Path) -> dict[str, bytes]:
    files = {}
    for name in _TOKENIZER_FILES:
        if (path := directory / name).is_file():
            files[name] = path.read_bytes()
    if (config := files.get("tokenizer_config.json")) is not None:
        files["tokenizer_config.json"] = _cleaned(config)
    return files


def _cleaned(config: bytes) -> bytes:
    try:
        values = json.loads(config)
        return _encoded({key: value for key, value in values.items() if key not in _NOT_KEPT})
    except (ValueError, AttributeError) as failure:
        raise SourceCorrupt(f"tokenizer_config.json is not a JSON object: {failure}") from failure


def _encoded(values: Any) -> bytes:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n"
