"""Loads used before they end: what was waited for is there, what fails says so, what is dropped stops."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from firstlight.domain.errors import Cancelled, ChecksumMismatch, ManifestInvalid, SourceCorrupt
from native_loader import (
    CheckpointWriter,
    begin_load,
    load_state_dict,
    open_checkpoint,
    open_safetensors,
    save_checkpoint,
)

CHUNK = 4096
LAYERS = 600


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One chunk a layer, so that each is an event of its own."""
    path = tmp_path_factory.mktemp("loading") / "checkpoint"
    with CheckpointWriter(path, source="test", revision="0", chunk_bytes=CHUNK) as writer:
        for index in range(LAYERS):
            writer.add_tensor(f"layers.{index}", torch.full((CHUNK // 4,), float(index)))
        writer.add_alias("tied", "layers.0")
        writer.commit()
    return path


def test_what_was_waited_for_is_there(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint).begin() as loading:
        assert list(loading.tensors) == [*(f"layers.{i}" for i in range(LAYERS)), "tied"]
        assert loading.wait("layers.3", 30).eq(3).all()
        loading.wait_prefix(["layers.5", "tied"], 30)
        assert loading.bytes_done >= 6 * CHUNK
        assert loading.tensors["tied"] is loading.tensors["layers.0"]
        state = loading.result(30)
        assert loading.bytes_done == loading.bytes_total == LAYERS * CHUNK == loading.report().size_bytes
    assert all(state[f"layers.{index}"].eq(index).all() for index in range(LAYERS))


def test_tensors_arrive_in_execution_order(checkpoint: Path) -> None:
    seen = []
    with begin_load(checkpoint) as loading:
        for name, tensor in loading.arrivals():
            assert tensor.eq(0 if name == "tied" else int(name.removeprefix("layers."))).all()
            seen.append(name)
    assert sorted(seen) == sorted([*(f"layers.{i}" for i in range(LAYERS)), "tied"])
    assert seen[:2] == ["layers.0", "tied"] and seen[-1] == f"layers.{LAYERS - 1}"


def test_layers_before_the_damage_are_given_and_the_rest_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "c", source="test", revision="0", chunk_bytes=CHUNK) as writer:
        for index in range(8):
            writer.add_tensor(f"layers.{index}", torch.full((CHUNK // 4,), float(index)))
        writer.commit()
    with (tmp_path / "c" / "partition-0.bin").open("r+b") as file:
        file.seek(5 * CHUNK + 17)
        file.write(b"\xff")
    with begin_load(tmp_path / "c", threads=1) as loading:
        assert loading.wait("layers.4", 30).eq(4).all()
        for wait in (lambda: loading.wait("layers.5", 30), lambda: loading.result(30), loading.report):
            with pytest.raises(ChecksumMismatch) as caught:
                wait()
            assert caught.value.fields["chunk"] == 5
        assert loading.wait("layers.0", 30).eq(0).all(), "what was verified stays good"


def test_unknown_names_are_key_errors(checkpoint: Path) -> None:
    with begin_load(checkpoint) as loading:
        for name in ("layers.9999", ""):
            with pytest.raises(KeyError):
                loading.wait(name)


def test_a_cancelled_load_says_so(checkpoint: Path) -> None:
    """It may be faster than the cancellation; then its bytes are right. Ten loads are not all that fast."""
    cancelled = 0
    for _ in range(10):
        loading = begin_load(checkpoint, threads=1)
        loading.cancel()
        try:
            assert loading.wait(f"layers.{LAYERS - 1}", 30).eq(LAYERS - 1).all()
        except Cancelled:
            cancelled += 1
    assert cancelled > 0


def test_tensors_outlive_the_load_and_are_private(checkpoint: Path) -> None:
    first = begin_load(checkpoint).wait("layers.7", 30)  # the load itself is dropped here
    second = load_state_dict(checkpoint)["layers.7"]
    first.fill_(-1)
    assert second.eq(7).all()
    assert load_state_dict(checkpoint)["layers.7"].eq(7).all()


def test_one_tensor_saved_by_torch_is_one_tensor_large(checkpoint: Path) -> None:
    """Each has a storage of its own: nothing drags the whole partition along."""
    tensor = load_state_dict(checkpoint)["layers.7"]
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    assert tensor.storage_offset() == 0
    file = io.BytesIO()
    torch.save(tensor, file)
    assert len(file.getvalue()) < 2 * CHUNK


def test_nothing_to_load_is_loaded(tmp_path: Path) -> None:
    save_checkpoint({}, tmp_path / "c")
    save_file({}, tmp_path / "empty.safetensors")
    assert load_state_dict(tmp_path / "c") == {} == load_state_dict(tmp_path / "empty.safetensors")
    save_checkpoint({"none": torch.empty(3, 0)}, tmp_path / "none")
    with begin_load(tmp_path / "none") as loading:
        assert loading.wait("none", 1).shape == (3, 0)


@pytest.mark.parametrize("header_padding", range(8))
def test_safetensors_are_used_while_they_load(tmp_path: Path, header_padding: int) -> None:
    """Whatever the alignment of their bytes; those that must be moved are moved once waited for."""
    path = tmp_path / "m.safetensors"
    state = {f"layers.{i}": torch.full((1000 + i,), i, dtype=torch.float64) for i in range(20)}
    save_file(state, path)
    text = path.read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = text[8 : 8 + length].rstrip() + b" " * header_padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + text[8 + length :])
    with open_safetensors(tmp_path).begin() as loading:
        assert torch.equal(loading.wait("layers.2", 30), state["layers.2"])
        arrived = dict(loading.arrivals())
        assert all(torch.equal(arrived[name], tensor) for name, tensor in state.items())
        assert loading.result(30)["layers.19"] is arrived["layers.19"]
        assert loading.wait("layers.2", 30).data_ptr() == arrived["layers.2"].data_ptr()


def sparse_shard(path: Path, sizes: dict[str, int]) -> None:
    """Tensors of bytes in the order given; the file takes no room on the disk."""
    record, end = {}, 0
    for name, size_bytes in sizes.items():
        record[name] = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [end, end + size_bytes]}
        end += size_bytes
    header = json.dumps(record).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def test_chunks_of_safetensors_are_read_as_a_forward_pass_needs_them(tmp_path: Path) -> None:
    """The format sorts by name: layer 10 before layer 2, and the head before either."""
    size = 40 << 20
    sparse_shard(
        tmp_path / "a.safetensors",
        {"lm_head.weight": size, "model.layers.10.w": size, "model.layers.2.w": size},
    )
    sparse_shard(tmp_path / "b.safetensors", {"model.embed_tokens.weight": size, "model.norm.weight": 7})
    model = open_safetensors(tmp_path)
    order = ["model.embed_tokens.weight", "model.layers.2.w", "model.layers.10.w", "model.norm.weight"]
    assert list(model.tensors) == [*order, "lm_head.weight"]
    needed = model.prefix_bytes()
    assert needed[order[0]] < needed[order[1]] < needed[order[2]] <= needed["lm_head.weight"]
    segments = model.segments()
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sum(segment.length for segment in segments) == total == needed["lm_head.weight"]
    places = sorted((segment.arena_offset, segment.length) for segment in segments)
    assert all(start + length <= after for (start, length), (after, _) in pairwise(places))
    assert Path(segments[0].path).name == "b.safetensors"


def test_safetensors_cut_short_during_the_load_are_an_error(tmp_path: Path) -> None:
    sparse_shard(tmp_path / "a.safetensors", {"w": 40 << 20})
    model = open_safetensors(tmp_path)
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(20 << 20)
    with pytest.raises(SourceCorrupt, match=r"a\.safetensors"):
        model.begin().result(30)


def test_a_directory_with_a_manifest_is_a_checkpoint(tmp_path: Path) -> None:
    """Even beside safetensors, and even if the manifest is broken: nothing falls back to unverified bytes."""
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    assert load_state_dict(str(tmp_path))["a"].tolist() == [1, 1, 1]
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ManifestInvalid):
        load_state_dict(tmp_path)


def test_importing_the_library_imports_no_torch_and_no_numpy() -> None:
    """What only opens, verifies or hands memory out does not wait for them."""
    program = "import sys, native_loader; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
