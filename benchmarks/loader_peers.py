"""The peers, each called the way its own documentation says for tensors on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_files import BenchmarkFiles
from benchmarks.loader_ways import Load, Setting, Tensors, Way

if TYPE_CHECKING:
    import torch


def _shards(files: BenchmarkFiles) -> list[Path]:
    return files.shards


def _torch_load(setting: Setting, *, mmap: bool) -> Load:
    import torch

    def load() -> Tensors:
        state: dict[str, torch.Tensor] = torch.load(
            setting.files.torch_file, map_location="cpu", weights_only=True, mmap=mmap
        )
        return state

    return load


def _safetensors_load_file(setting: Setting) -> Load:
    from safetensors.torch import load_file

    shards = setting.files.shards

    def load() -> Tensors:
        state: dict[str, torch.Tensor] = {}
        for shard in shards:
            state |= load_file(shard)
        return state

    return load


def _safetensors_safe_open(setting: Setting) -> Load:
    import torch
    from safetensors import safe_open

    shards = setting.files.shards
    torch.empty(1)  # safe_open imports torch at its first tensor

    def load() -> Tensors:
        state: dict[str, torch.Tensor] = {}
        for shard in shards:
            with safe_open(shard, framework="pt", device="cpu") as file:
                state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return state

    return load


def _transformers(setting: Setting) -> Load:
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = setting.files.hugging_face

    # Any: transformers' models are untyped.
    def load() -> Any:
        return LlamaForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)

    return load


def _runai(setting: Setting) -> Load:
    os.environ.setdefault("RUNAI_STREAMER_LOG_LEVEL", "ERROR")
    from runai_model_streamer import SafetensorsStreamer

    paths = [str(shard) for shard in setting.files.shards]

    def load() -> Tensors:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths)
            return dict(streamer.get_tensors())

    return load


def _fastsafetensors(setting: Setting) -> Load:
    import torch
    from fastsafetensors import fastsafe_open

    paths = [str(shard) for shard in setting.files.shards]

    torch.empty(1)  # imported late there too

    def load() -> Tensors:
        with fastsafe_open(filenames=paths, nogds=True, device="cpu") as files:
            return {name: files.get_tensor(name) for name in files.keys()}  # noqa: SIM118 - no mapping

    return load


def _tensorizer(setting: Setting, *, verify: bool) -> Load:
    from tensorizer import TensorDeserializer

    def load() -> Tensors:
        return dict(TensorDeserializer(str(setting.files.tensorizer_file), device="cpu", verify_hash=verify))

    return load


def _torch_file(files: BenchmarkFiles) -> list[Path]:
    return [files.torch_file]


def _tensorizer_file(files: BenchmarkFiles) -> list[Path]:
    return [files.tensorizer_file]


WAYS = (
    Way(
        name="safetensors-load-file",
        label="safetensors load_file",
        package="safetensors",
        prepare=_safetensors_load_file,
        reads=_shards,
    ),
    Way(
        name="safetensors-safe-open",
        label="safetensors safe_open",
        package="safetensors",
        prepare=_safetensors_safe_open,
        reads=_shards,
    ),
    Way(
        name="runai-streamer",
        label="Run:ai model streamer",
        package="runai-model-streamer",
        prepare=_runai,
        reads=_shards,
    ),
    Way(
        name="fastsafetensors",
        label="fastsafetensors, no GDS",
        package="fastsafetensors",
        prepare=_fastsafetensors,
        reads=_shards,
    ),
    Way(
        name="transformers",
        label="transformers from_pretrained",
        package="transformers",
        prepare=_transformers,
        reads=_shards,
    ),
    Way(
        name="torch-load-mmap",
        label="torch.load mmap",
        package="torch",
        prepare=lambda setting: _torch_load(setting, mmap=True),
        reads=_torch_file,
    ),
    Way(
        name="torch-load",
        label="torch.load",
        package="torch",
        prepare=lambda setting: _torch_load(setting, mmap=False),
        reads=_torch_file,
    ),
    Way(
        name="tensorizer",
        label="tensorizer",
        package="tensorizer",
        prepare=lambda setting: _tensorizer(setting, verify=False),
        reads=_tensorizer_file,
    ),
    Way(
        name="tensorizer-verified",
        label="tensorizer with hashes",
        package="tensorizer",
        prepare=lambda setting: _tensorizer(setting, verify=True),
        reads=_tensorizer_file,
    ),
)
