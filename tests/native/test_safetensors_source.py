"""Safetensors files as others write them, and as nobody should."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable, SourceUnsupported
from native_loader import (
    SafetensorsFile,
    load_safetensors,
    load_state_dict,
    open_checkpoint,
    save_checkpoint,
    verify,
)

STATE = {
    "model.layers.10.w": torch.randn(3, 5),
    "model.layers.2.w": torch.randn(7).to(torch.bfloat16),
    "model.embed_tokens.weight": torch.randn(9).to(torch.float8_e4m3fn),
    "model.norm.weight": torch.tensor([True, False]),
    "lm_head.weight": torch.empty(0, 4),
    "packed": torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "scale": torch.tensor(2.5, dtype=torch.float64),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return one.reshape(-1).view(torch.uint8).tolist() == other.reshape(-1).view(torch.uint8).tolist()


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_a_real_file_is_read_as_it_is(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert set(file.tensors) == set(STATE)
        assert file.metadata == {"format": "pt"}
        assert b"".join(file.pieces("model.layers.10.w")) == STATE["model.layers.10.w"].numpy().tobytes()
        assert list(file.pieces("lm_head.weight")) == []
        with pytest.raises(KeyError):
            next(file.pieces("unknown"))


def test_a_model_directory_becomes_a_checkpoint_in_execution_order(tmp_path: Path) -> None:
    source, path = tmp_path / "model", tmp_path / "checkpoint"
    source.mkdir()
    names = list(STATE)
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for shard, members in shards.items():
        save_file({name: STATE[name] for name in members}, source / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (source / "config.json").write_bytes(b'{"model_type": "llama"}')
    (source / "tokenizer.json").write_bytes(b"{}")
    (source / "training_args.bin").write_bytes(b"pickle")
    manifest = save_checkpoint(source, path)
    verify(path)
    loaded = load_state_dict(path)
    assert all(same(loaded[name], tensor) for name, tensor in STATE.items())
    order = [entry.name for entry in manifest.tensors]
    assert order[:3] == ["model.embed_tokens.weight", "model.layers.2.w", "model.layers.10.w"]
    assert order[-1] == "lm_head.weight"
    assert set(open_checkpoint(path).files()) == {"config.json", "tokenizer.json"}


@pytest.mark.parametrize("header_padding", range(4))
def test_plain_files_are_loaded_without_conversion(tmp_path: Path, header_padding: int) -> None:
    """Whatever the header's length: it decides where every tensor lies in memory."""
    save_file(STATE, tmp_path / "a.safetensors")
    save_file({"other": torch.arange(5)}, tmp_path / "b.safetensors")
    text = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(text[:8], "little")
    header = text[8 : 8 + length] + b" " * header_padding
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + text[8 + length :])
    loaded = load_safetensors(tmp_path)
    assert set(loaded) == {*STATE, "other"}
    assert all(same(loaded[name], tensor) for name, tensor in STATE.items())
    loaded["other"] += 1
    assert loaded["other"].tolist() == [1, 2, 3, 4, 5]


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


MALICIOUS = {
    "empty": b"",
    "short": b"\1\0\0",
    "header length beyond the file": (2**40).to_bytes(8, "little") + b"{}",
    "header length overflows": b"\xff" * 8 + b"{}",
    "header of nothing": bytes(8),
    "not json": raw(b"{nope"),
    "not utf-8": raw(b'{"\xff": 1}'),
    "utf-16": raw('{"a": 1}'.encode("utf-16-le")),
    "a byte order mark": raw(b'\xef\xbb\xbf{"__metadata__":{}}'),
    "white space in front": raw(b' {"__metadata__":{}}'),
    "half a surrogate pair": raw(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "a name of a megabyte": raw({"a" * (1 << 20): entry()["a"]}, bytes(8)),
    "not a number": raw(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}'),
    "a number of a million digits": raw(b'{"a":' + b"9" * (1 << 20) + b"}"),
    "a shape whose product has a million digits": raw(entry(shape=[2**62] * 20_000), bytes(8)),
    "minus zero": raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}'),
    "a fraction": raw(entry(shape=[2.0]), bytes(8)),
    "shape of 2^63": raw(entry(shape=[2**63]), bytes(8)),
    "offsets of 2^63": raw(entry(data_offsets=[2**63 - 8, 2**63]), bytes(8)),
    "a type of our own": raw(entry(dtype="C128", data_offsets=[0, 32]), bytes(32)),
    "a pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "a zip, as torch.save makes them": b"PK\x03\x04" + bytes(64),
    "a list": raw([]),
    "deeply nested": raw(b"[" * 100_000),
    "a name twice": raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "metadata a list": raw({"__metadata__": []}),
    "unknown dtype": raw(entry(dtype="F128"), bytes(8)),
    "dtype of another kind": raw(entry(dtype=["F32"]), bytes(8)),
    "shape contradicts": raw(entry(shape=[3]), bytes(8)),
    "shape overflows": raw(entry(shape=[2**62, 2**62]), bytes(8)),
    "negative shape": raw(entry(shape=[-2]), bytes(8)),
    "boolean shape": raw(entry(shape=[True, 2]), bytes(8)),
    "offsets reversed": raw(entry(data_offsets=[8, 0]), bytes(8)),
    "negative offset": raw(entry(data_offsets=[-8, 0]), bytes(8)),
    "three offsets": raw(entry(data_offsets=[0, 4, 8]), bytes(8)),
    "beyond the file": raw(entry(data_offsets=[8, 16]), bytes(8)),
    "hole at the start": raw(entry(data_offsets=[8, 16]), bytes(16)),
    "file not covered": raw(entry(), bytes(9)),
    "file cut short": raw(entry(), bytes(7)),
    "overlap": raw(entry() | {"b": entry()["a"]}, bytes(16)),
    "a field more": raw(entry(more=1), bytes(8)),
    "a field less": raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_files_are_corrupt(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(MALICIOUS[name])
    for use in (SafetensorsFile, load_safetensors, lambda path: save_checkpoint(path, tmp_path / "c")):
        with pytest.raises(SourceCorrupt) as caught:
            use(path)
        assert path.name in caught.value.message and len(caught.value.message) < 1000
    assert not (tmp_path / "c").exists()


def test_a_million_lists_are_refused_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw(b'{"a":[' + b"[]," * (1 << 20) + b"0]}"))
    with pytest.raises(SourceCorrupt):
        load_safetensors(path)


def test_a_header_that_claims_100_megabytes_allocates_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((99_000_000).to_bytes(8, "little") + b"{}")
    with pytest.raises(SourceCorrupt):
        load_safetensors(path)


def test_a_large_tensor_comes_in_pieces(tmp_path: Path) -> None:
    tensor = torch.arange(3_000_001, dtype=torch.float64)
    save_file({"a": tensor[:5].clone(), "b": tensor}, tmp_path / "m.safetensors")
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        sizes = [len(piece) for piece in file.pieces("b")]
    assert sum(sizes) == tensor.nbytes and len(sizes) == 3
    save_checkpoint(tmp_path, tmp_path / "c")
    assert torch.equal(load_state_dict(tmp_path / "c")["b"], tensor)


def test_a_source_cut_short_while_it_is_copied_is_corrupt(tmp_path: Path) -> None:
    """Not the end of the process, as it would be of a mapped file."""
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(4 << 20)}, path)
    with SafetensorsFile(path) as file:
        pieces = file.pieces("a")
        assert len(next(pieces)) == 8 << 20
        os.truncate(path, 10 << 20)
        with pytest.raises(SourceCorrupt, match="cut short"):
            list(pieces)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "m.safetensors")
    for source in (tmp_path, tmp_path / "m.safetensors"):
        with pytest.raises((SourceUnreachable, SourceUnsupported)):
            load_safetensors(source)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """As hubs lay their caches out."""
    blob, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blob.mkdir()
    snapshot.mkdir()
    save_file({"a": torch.ones(3)}, blob / "1234")
    (snapshot / "model.safetensors").symlink_to("../blobs/1234")
    for source in (snapshot, snapshot / "model.safetensors"):
        assert load_safetensors(source)["a"].tolist() == [1, 1, 1]


def test_what_is_not_there_is_unreachable(tmp_path: Path) -> None:
    for source in (tmp_path / "no", tmp_path / "no.safetensors"):
        with pytest.raises(SourceUnreachable):
            save_checkpoint(source, tmp_path / "c")
    with pytest.raises(SourceUnreachable):
        SafetensorsFile(tmp_path / "no.safetensors")


def test_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(SourceUnsupported, match="pickle"):
            load_safetensors(source)
    with pytest.raises(SourceUnsupported, match="pickle"):
        save_checkpoint(tmp_path, tmp_path / "c")


@pytest.mark.parametrize(
    "index",
    [b"{", b"[]", b'{"weight_map": []}', b'{"weight_map": {"a": "../x"}}', b'{"weight_map": {"a": "gone"}}',
     b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": ["b"]}}'],
)  # fmt: skip
def test_an_index_that_lies_is_corrupt(tmp_path: Path, index: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(SourceCorrupt):
        save_checkpoint(tmp_path, tmp_path / "c")


def test_a_tensor_in_two_shards_is_corrupt(tmp_path: Path) -> None:
    for shard in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{shard}.safetensors")
    with pytest.raises(SourceCorrupt):
        save_checkpoint(tmp_path, tmp_path / "c")
