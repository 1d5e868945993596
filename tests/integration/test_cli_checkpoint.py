"""`firstlight checkpoint` on real files, as a user runs it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from firstlight.cli.main import run
from native_loader import CheckpointWriter, load_state_dict, open_checkpoint, verify


@dataclass(frozen=True)
class Outcome:
    returncode: int
    stdout: str
    stderr: str


def firstlight(*arguments: str | Path) -> Outcome:
    """The console script's own entry point, in this process: torch is imported once for all tests."""
    before = sys.argv
    sys.argv = ["firstlight", "checkpoint", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            run()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def told(*arguments: str | Path) -> Any:
    done = firstlight(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions of four chunks, with a tie, a view and a file."""
    path = tmp_path_factory.mktemp("cli") / "checkpoint"
    with CheckpointWriter(
        path, source="hf://org/model", revision="abc", chunk_bytes=4096, partition_count=2
    ) as writer:
        for index in range(8):
            writer.add_tensor(f"layers.{index}.w", torch.full((8, 128), float(index)), partition=index % 2)
        writer.add_alias("head[tied]", "layers.0.w")
        writer.add_file("config.json", b"{}")
        writer.commit()
    return path


def test_convert_keeps_every_tensor_as_it_is_stored(tmp_path: Path) -> None:
    source, path = tmp_path / "model", tmp_path / "checkpoint"
    source.mkdir()
    state = {"model.layers.1.w": torch.randn(7).bfloat16(), "model.embed_tokens.w": torch.randn(3, 5)}
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_bytes(b'{"a": 1}')
    made = told("convert", source, path)
    opened = open_checkpoint(path)
    assert made == {
        "path": str(path),
        "manifest_digest": opened.manifest.digest,
        "size_bytes": opened.size_bytes,
    }
    assert list(opened.tensors) == ["model.embed_tokens.w", "model.layers.1.w"]
    loaded = load_state_dict(path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert opened.files() == {"config.json": b'{"a": 1}'}
    assert told("convert", source, path) == made, "the same again is success"


def test_convert_through_the_model_to_another_dtype(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    done = firstlight("convert", tmp_path / "model", tmp_path / "c", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    manifest = open_checkpoint(tmp_path / "c").manifest
    assert manifest.dtype == "BF16" and manifest.digest in done.stdout
    verify(tmp_path / "c")


def test_what_cannot_be_converted_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for arguments, word in (
        ((tmp_path / "pickled", tmp_path / "c"), "pickle"),
        ((tmp_path / "broken", tmp_path / "c"), "not a safetensors file"),
        ((tmp_path / "gone", tmp_path / "c"), "does not exist"),
        ((tmp_path / "m.gguf", tmp_path / "c"), "--dtype"),
        ((tmp_path / "m.gguf", tmp_path / "c", "--dtype", "int3"), "--dtype is one of"),
        ((tmp_path / "m.gguf", tmp_path / "c", "--dtype", "float32"), "m.gguf"),
    ):
        done = firstlight("convert", *arguments)
        assert done.returncode == 1 and word in done.stderr, done.stderr
        assert done.stderr.startswith("firstlight: ") and len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "c").exists()


def test_inspect_shows_what_the_manifest_holds(checkpoint: Path) -> None:
    manifest = open_checkpoint(checkpoint).manifest
    shown = firstlight("inspect", checkpoint)
    assert shown.returncode == 0, shown.stderr
    for word in (
        manifest.digest,
        "hf://org/model @ abc",
        "partition-1.bin",
        "layers.7.w",
        "8×128",
        "head[tied]",
    ):
        assert word in shown.stdout, word
    record = told("inspect", checkpoint)
    assert record["digest"] == manifest.digest
    assert [tensor["name"] for tensor in record["tensors"]] == [f"layers.{i}.w" for i in range(8)]
    assert record["partitions"][1] == {"name": "partition-1.bin", "size_bytes": 16384, "chunks": 4}
    assert record["aliases"] == {"head[tied]": "layers.0.w"}


def test_inspect_of_many_tensors_stops_unless_told_not_to(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "c", source="s", revision="r") as writer:
        for index in range(50):
            writer.add_tensor(f"layers.{index}", torch.ones(1))
        writer.commit()
    short, full = (
        firstlight("inspect", tmp_path / "c").stdout,
        firstlight("inspect", tmp_path / "c", "--all").stdout,
    )
    assert "and 30 more" in short and "layers.49" not in short
    assert "layers.49" in full and "more" not in full


def test_verify_says_it_is_intact(checkpoint: Path) -> None:
    done = firstlight("verify", checkpoint)
    assert done.returncode == 0 and "as they were written" in done.stdout
    record = told("verify", checkpoint)
    assert record["is_intact"] and record["damage"] == [] and record["size_bytes"] == 32768


def test_verify_names_every_damaged_chunk_and_its_tensors(checkpoint: Path) -> None:
    places = {"partition-0.bin": 4096 + 3, "partition-1.bin": 3 * 4096, "config.json": 1}
    intact = {name: (checkpoint / name).read_bytes() for name in places}
    try:
        for name, at in places.items():
            content = bytearray(intact[name])
            content[at] ^= 1
            (checkpoint / name).write_bytes(content)
        done = firstlight("verify", checkpoint, "--json")
        assert done.returncode == 1
        assert "config.json differs from its checksum" in done.stderr
        damage = json.loads(done.stdout)["damage"]
        assert [(d["file"], d["chunk"], d["offset"], d["tensors"]) for d in damage] == [
            ("config.json", None, 0, []),
            ("partition-0.bin", 1, 4096, ["layers.2.w"]),
            ("partition-1.bin", 3, 12288, ["layers.7.w"]),
        ]
        shown = firstlight("verify", checkpoint)
        assert shown.returncode == 1 and "layers.7.w" in shown.stdout and "12288–16384" in shown.stdout
    finally:
        for name, content in intact.items():
            (checkpoint / name).write_bytes(content)
    verify(checkpoint)


def test_bench_measures_every_way(checkpoint: Path) -> None:
    record = told("bench", checkpoint, "--rounds", "2")
    ways = {row["way"]: row for row in record["ways"]}
    assert list(ways) == ["plain direct read", "load, cold disk", "buffered, page cache", "bind from DRAM"]
    assert all(row["seconds"] > 0 and row["cpu_s_per_gb"] >= 0 for row in ways.values())
    assert ways["plain direct read"]["share_of_plain"] == 1
    assert record["size_bytes"] == 32768 and record["rounds"] == 2
    shown = firstlight("bench", checkpoint, "--rounds", "1")
    assert shown.returncode == 0 and "bind from DRAM" in shown.stdout


@pytest.mark.parametrize("command", ["inspect", "verify", "bench"])
def test_what_is_no_checkpoint_is_said(tmp_path: Path, command: str) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    done = firstlight(command, tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("firstlight: manifest: ")
    gone = firstlight(command, tmp_path / "gone")
    assert gone.returncode == 1 and "does not exist" in gone.stderr


def test_every_command_has_help_with_an_example() -> None:
    for command in ("convert", "inspect", "verify", "bench"):
        done = firstlight(command, "--help")
        assert done.returncode == 0 and f"firstlight checkpoint {command}" in " ".join(done.stdout.split())
    assert firstlight("convert").returncode == 2


def test_as_a_program_it_imports_no_torch_to_inspect(checkpoint: Path) -> None:
    program = (
        "import sys; from firstlight.cli.main import run\n"
        "try: run()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "checkpoint", "inspect", str(checkpoint)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "layers.7.w" in done.stdout
    assert done.stderr.splitlines()[-1] == "False"
