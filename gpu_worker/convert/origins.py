"""Where the bytes of a source's tensors stand, whatever kind of file they are in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_worker.convert.gguf_following import gguf_tensors
from gpu_worker.convert.packed_types import PACKED, Block
from gpu_worker.convert.provenance import LessOne, Step
from gpu_worker.convert.source import ModelSource
from gpu_worker.convert.stream_plan import LESS_ONE
from native_loader.dtypes import BITS, dtype_name
from native_loader.safetensors_source import SafetensorsFile
from native_loader.standalone import safetensors_files


class NotStreamable(Exception):
    """This model's weights are more than copies and casts of its source's: it has to be converted whole."""


@dataclass(frozen=True, slots=True)
class Origin:
    """One tensor of a source. `kind` is the type of its bytes where its elements are met in another."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: str
    kind: str = ""

    @property
    def block(self) -> Block:
        """The smallest part of it that can be had alone."""
        kind = self.kind or self.dtype
        return PACKED[kind] if kind in PACKED else Block(1, BITS[kind] // 8)

    def types(self, through: Sequence[Step]) -> tuple[str, ...]:
        """Those its bytes go through, as a plan names them."""
        names = tuple(LESS_ONE if isinstance(step, LessOne) else dtype_name(step) for step in through)
        return names if self.kind in ("", names[0]) else (self.kind, *names)


def safetensors_origins(source: ModelSource) -> dict[str, Origin]:
    """Raises: NotStreamable, SourceCorrupt."""
    found: dict[str, Origin] = {}
    for path in safetensors_files(source.directory):
        with SafetensorsFile(path) as shard:
            for tensor in shard.tensors.values():
                if tensor.name in found:
                    raise NotStreamable(f"{tensor.name} stands in two shards")
                found[tensor.name] = Origin(path.name, tensor.offset, tensor.shape, tensor.dtype)
    return found


def gguf_origins(path: Path) -> dict[str, Origin]:
    """Raises: SourceCorrupt."""
    return {
        name: Origin(path.name, tensor.offset, tensor.shape, "F32", tensor.kind)
        for name, tensor in gguf_tensors(path).items()
    }
