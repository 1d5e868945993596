"""What stands at a path: a Hugging Face layout, or one GGUF file. Looks, and reads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable, SourceUnsupported
from gpu_worker.engine.architectures import require_supported
from native_loader.standalone import PICKLE_SUFFIXES, safetensors_files

GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`gguf_name` is the file in `directory` to read, None for safetensors shards beside a config.json."""

    directory: Path
    gguf_name: str | None

    # Any: the values of a JSON object.
    def config(self) -> dict[str, Any]:
        """config.json of a Hugging Face layout. Raises: SourceCorrupt."""
        path = self.directory / "config.json"
        try:
            config = json.loads(path.read_bytes())
        except (OSError, ValueError) as failure:
            raise SourceCorrupt(f"config.json cannot be read: {failure}", path=str(path)) from failure
        if not isinstance(config, dict):
            raise SourceCorrupt("config.json is not a JSON object", path=str(path))
        return config


def locate(path: Path) -> ModelSource:
    """Find the model at `path` and refuse early what cannot be served.

    Raises: SourceUnreachable, SourceUnsupported (pickle, remote code, architecture), SourceCorrupt.
    """
    if not path.exists():
        raise SourceUnreachable(f"{path} does not exist", path=str(path))
    if path.is_file():
        return _single_file(path)
    if (path / "config.json").is_file():
        source = ModelSource(path, None)
        require_supported(source.config())
        safetensors_files(path)
        return source
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return _single_file(found[0])
    if found:
        raise SourceUnsupported(f"{len(found)} GGUF files stand there; name the one to serve", path=str(path))
    _refuse_pickle(path)
    raise SourceUnsupported(
        "neither config.json with safetensors nor a GGUF file stands there", path=str(path)
    )


def _single_file(path: Path) -> ModelSource:
    if path.suffix in PICKLE_SUFFIXES:
        raise SourceUnsupported("pickle files can run code and are refused", path=str(path))
    if path.suffix != ".gguf":
        raise SourceUnsupported("a single file must be a GGUF file; give a directory", path=str(path))
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise SourceCorrupt(f"{path.name} does not begin as a GGUF file does", path=str(path))
    return ModelSource(path.parent, path.name)


def _refuse_pickle(directory: Path) -> None:
    if any(path.suffix in PICKLE_SUFFIXES for path in directory.iterdir()):
        raise SourceUnsupported("only pickle files stand there; they can run code", path=str(directory))
