"""How many bytes a source will take once converted, from headers alone. No torch."""

from __future__ import annotations

from math import prod
from pathlib import Path

from firstlight.domain.errors import SourceCorrupt, SourceUnsupported
from gpu_worker.convert.source import ModelSource, locate
from native_loader.safetensors_source import SafetensorsFile
from native_loader.standalone import safetensors_files

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def estimate_size(path: Path, dtype: str = "float32") -> int:
    """Bytes of the checkpoint, to within padding; a tied head that the source stores twice counts twice.

    Raises: SourceUnreachable, SourceUnsupported, SourceCorrupt.
    """
    if dtype not in DTYPE_BYTES:
        raise SourceUnsupported(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    source = locate(path)
    elements = _safetensors_elements(path) if source.gguf_name is None else _gguf_elements(source)
    return elements * DTYPE_BYTES[dtype]


def _safetensors_elements(directory: Path) -> int:
    total = 0
    for shard in safetensors_files(directory):
        with SafetensorsFile(shard) as file:
            total += sum(prod(tensor.shape) for tensor in file.tensors.values())
    return total


def _gguf_elements(source: ModelSource) -> int:
    import gguf  # numpy and a second of parsing: only when it is a GGUF file

    assert source.gguf_name is not None
    try:
        reader = gguf.GGUFReader(source.directory / source.gguf_name)
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError, OverflowError) as failure:
        raise SourceCorrupt(f"{source.gguf_name} cannot be read as GGUF: {failure}") from failure
    return sum(int(tensor.n_elements) for tensor in reader.tensors)
