"""One set of weights in every format that is measured, written once and kept beside each other.

python -m benchmarks.loader_files DIRECTORY SIZE_BYTES

<directory>/hugging-face/   config.json, safetensors in shards of about 1 GiB, their index
<directory>/torch.pt        torch.save of the state dict
<directory>/model.tensors   tensorizer's format, when it is installed
<directory>/ssd/checkpoints/<id>/   ours, where a store finds it
<directory>/alphabetical/   ours again, in the order safetensors keeps, for the ablation
<directory>/expected.json   size, and the CRC32C of each tensor's bytes: what every load is held against
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CHECKPOINT_ID = "bench-loader@0000"
SHARD_BYTES = 1 << 30
SEED = 20_240_607


@dataclass(frozen=True)
class BenchmarkFiles:
    """Where each format lies below `directory`."""

    directory: Path

    @property
    def hugging_face(self) -> Path:
        return self.directory / "hugging-face"

    @property
    def shards(self) -> list[Path]:
        return sorted(self.hugging_face.glob("*.safetensors"))

    @property
    def torch_file(self) -> Path:
        return self.directory / "torch.pt"

    @property
    def tensorizer_file(self) -> Path:
        return self.directory / "model.tensors"

    @property
    def ssd_root(self) -> Path:
        return self.directory / "ssd"

    @property
    def checkpoint(self) -> Path:
        return self.ssd_root / "checkpoints" / CHECKPOINT_ID

    @property
    def alphabetical(self) -> Path:
        return self.directory / "alphabetical"

    @property
    def partition(self) -> Path:
        return self.checkpoint / "partition-0.bin"

    # Any: what the file says, as JSON.
    @cached_property
    def expected(self) -> Any:
        return json.loads((self.directory / "expected.json").read_text())

    @property
    def size_bytes(self) -> int:
        """Of the weights themselves; headers and padding not counted."""
        return int(self.expected["size_bytes"])


def prepare_files(directory: Path, size_bytes: int) -> BenchmarkFiles:
    """The files for `size_bytes`, written unless they are there. In a process of its own: torch's memory."""
    files = BenchmarkFiles(directory)
    if not _is_complete(files, size_bytes):
        directory.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.loader_files", str(directory), str(size_bytes)]
        subprocess.run(command, check=True)
    return files


def remove_files(files: BenchmarkFiles) -> None:
    """What `prepare_files` wrote, and nothing else of the directory."""
    for folder in (files.hugging_face, files.ssd_root, files.alphabetical):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (files.torch_file, files.tensorizer_file, files.directory / "expected.json"):
        file.unlink(missing_ok=True)


def _is_complete(files: BenchmarkFiles, size_bytes: int) -> bool:
    try:
        wanted = bool(files.expected["wanted_bytes"] == size_bytes and files.expected["seed"] == SEED)
    except (OSError, ValueError, KeyError):
        return False
    return wanted and (files.tensorizer_file.exists() or find_spec("tensorizer") is None)


def write_files(files: BenchmarkFiles, size_bytes: int) -> None:
    """Write every format; `expected.json` last, so that what was cut short is written anew."""
    from benchmarks.loader_model import random_model, shape_for
    from native_loader import save_checkpoint

    remove_files(files)
    shape = shape_for(size_bytes)
    model = random_model(shape, seed=SEED)
    state = dict(model.state_dict())
    _write_safetensors(files.hugging_face, model.config, state)
    _write_torch(files.torch_file, state)
    _write_tensorizer(files.tensorizer_file, state)
    files.checkpoint.parent.mkdir(parents=True)
    save_checkpoint(files.hugging_face, files.checkpoint)
    save_checkpoint(dict(sorted(state.items())), files.alphabetical)
    expected = {
        "wanted_bytes": size_bytes,
        "seed": SEED,
        "size_bytes": sum(tensor.nbytes for tensor in state.values()),
        "tensors": len(state),
        "layers": shape.layers,
        "crc32c": {name: checksum(tensor) for name, tensor in state.items()},
    }
    (files.directory / "expected.json").write_text(json.dumps(expected))


def checksum(tensor: torch.Tensor) -> int:
    """CRC32C of the tensor's bytes in order."""
    import torch

    from native_loader import crc32c

    if not tensor.numel():
        return crc32c(b"")
    # Any: numpy's arrays are buffers, which its types do not say.
    flat: Any = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return crc32c(memoryview(flat))


# Any: a transformers configuration.
def _write_safetensors(directory: Path, config: Any, state: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in state.items():
        if filled and filled + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_torch(file: Path, state: Mapping[str, torch.Tensor]) -> None:
    import torch

    torch.save(dict(state), file)


def _write_tensorizer(file: Path, state: Mapping[str, torch.Tensor]) -> None:
    if find_spec("tensorizer") is None:
        return
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(str(file))
    serializer.write_state_dict(dict(state))
    serializer.close()


if __name__ == "__main__":
    write_files(BenchmarkFiles(Path(sys.argv[1])), int(sys.argv[2]))
