"""No single changed byte of a checkpoint goes unnoticed, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firstlight.domain.errors import CheckpointError, ChecksumMismatch, ManifestInvalid
from native_loader import CheckpointWriter, load_state_dict, verify
from native_loader.manifest import parse_manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corruption") / "checkpoint"
    with CheckpointWriter(path, source="test", revision="0000", chunk_bytes=8192) as writer:
        for index in range(7):
            writer.add_tensor(f"layers.{index}", torch.randn(index * 300 + 5))
        writer.add_alias("tied", "layers.0")
        writer.add_file("config.json", b'{"hidden_size": 8}')
        writer.commit()
    return path


def flip(path: Path, at: int, mask: int) -> None:
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= mask
    path.write_bytes(content)


@given(at=st.integers(0, 2**40), mask=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_changed_byte_of_a_partition_is_found(checkpoint: Path, at: int, mask: int) -> None:
    """Padding included: a byte nobody reads is still a byte that was not written."""
    partition = checkpoint / "partition-0.bin"
    flip(partition, at, mask)
    try:
        with pytest.raises(ChecksumMismatch) as caught:
            load_state_dict(checkpoint)
        assert caught.value.fields["chunk"] == at % partition.stat().st_size // 8192
        with pytest.raises(ChecksumMismatch):
            verify(checkpoint)
    finally:
        flip(partition, at, mask)
    verify(checkpoint)


@given(at=st.integers(0, 2**40), mask=st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_of_the_manifest_is_found(checkpoint: Path, at: int, mask: int) -> None:
    text = bytearray((checkpoint / "manifest.json").read_bytes())
    text[at % len(text)] ^= mask
    with pytest.raises(ManifestInvalid):
        parse_manifest(bytes(text))


@given(noise=st.binary(max_size=200), cut=st.integers(0, 2**20), keep=st.integers(0, 2**20))
@settings(max_examples=200, deadline=None)
def test_noise_is_answered_with_the_error_of_the_tree(
    checkpoint: Path, noise: bytes, cut: int, keep: int
) -> None:
    text = (checkpoint / "manifest.json").read_bytes()
    start = cut % (len(text) + 1)
    changed = text[:start] + noise + text[start + keep % 50 :]
    if changed == text:
        return
    with pytest.raises(ManifestInvalid):
        parse_manifest(changed)


@pytest.mark.parametrize("name", ["manifest.json", "partition-0.bin", "config.json"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_length_is_found(checkpoint: Path, name: str, change: int) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[:change] if change < 0 else content + b"\0")
    try:
        with pytest.raises(ManifestInvalid):
            load_state_dict(checkpoint)
    finally:
        (checkpoint / name).write_bytes(content)
    verify(checkpoint)


@pytest.mark.parametrize("name", ["manifest.json", "partition-0.bin", "config.json"])
def test_a_missing_file_is_found(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    try:
        with pytest.raises(CheckpointError) as caught:
            verify(checkpoint)
        assert caught.value.code == "checkpoint_missing"
    finally:
        (checkpoint / name).write_bytes(content)


def test_a_changed_small_file_is_found(checkpoint: Path) -> None:
    flip(checkpoint / "config.json", 3, 1)
    try:
        with pytest.raises(ChecksumMismatch):
            verify(checkpoint)
    finally:
        flip(checkpoint / "config.json", 3, 1)
