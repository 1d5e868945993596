"""Where a load puts a checkpoint's chunks, and how much of it a tensor needs."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from native_loader.execution_order import execution_order
from native_loader.manifest import Manifest, PartitionEntry, TensorEntry, parse_manifest, sealed
from native_loader.reader import Checkpoint

CHUNK = 4096


def manifest_of(*partition_chunks: int) -> Manifest:
    """Partitions of so many chunks; tensor `p.c` fills chunk c of partition p."""
    partitions = tuple(
        PartitionEntry(f"partition-{p}.bin", count * CHUNK, tuple(range(count)))
        for p, count in enumerate(partition_chunks)
    )
    tensors = tuple(
        TensorEntry(f"{p}.{c}", p, c * CHUNK, CHUNK, "U8", (CHUNK,), (1,))
        for p, count in enumerate(partition_chunks)
        for c in range(count)
    )
    draft = Manifest(
        1, "s", "r", "U8", None, CHUNK, partitions, tensors, MappingProxyType({"x": "0.1"}), (), ""
    )
    return parse_manifest(sealed(draft)[1])


def test_chunks_of_all_partitions_are_read_side_by_side() -> None:
    manifest = manifest_of(3, 1, 2)
    segments = Checkpoint(Path("/c"), manifest).segments([0, 1 << 21, 2 << 21])
    assert [(Path(s.path).name, s.file_offset // CHUNK) for s in segments] == [
        ("partition-0.bin", 0),
        ("partition-1.bin", 0),
        ("partition-2.bin", 0),
        ("partition-0.bin", 1),
        ("partition-2.bin", 1),
        ("partition-0.bin", 2),
    ]
    assert segments[4].arena_offset == (2 << 21) + CHUNK
    assert segments[4].crc32c == 1


def test_every_byte_is_read_once() -> None:
    manifest = manifest_of(3, 1, 2)
    offsets, total = manifest.arena_offsets()
    segments = Checkpoint(Path("/c"), manifest).segments(offsets)
    assert sum(segment.length for segment in segments) == manifest.size_bytes
    assert len({segment.arena_offset for segment in segments}) == len(segments)
    assert all(offset % (2 << 20) == 0 for offset in offsets)
    assert max(s.arena_offset + s.length for s in segments) <= total


def test_prefix_for_a_tensor_covers_it_and_no_more() -> None:
    manifest = manifest_of(3, 1, 2)
    assert manifest.prefix_bytes_for([]) == 0
    assert manifest.prefix_bytes_for(["0.0"]) == CHUNK
    assert manifest.prefix_bytes_for(["x"]) == 4 * CHUNK
    assert manifest.prefix_bytes_for(["1.0", "2.1"]) == 5 * CHUNK
    assert manifest.prefix_bytes_for([entry.name for entry in manifest.tensors]) == manifest.size_bytes
    with pytest.raises(KeyError):
        manifest.prefix_bytes_for(["unknown"])


def test_execution_order_of_the_usual_names() -> None:
    names = [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.10.mlp.up_proj.weight",
        "model.layers.2.self_attn.q_proj.weight",
        "model.norm.weight",
    ]
    assert execution_order(names) == [names[1], names[2], names[4], names[3], names[5], names[0]]
    gpt2 = ["h.0.ln_1.weight", "h.1.ln_1.weight", "ln_f.weight", "wpe.weight", "wte.weight"]
    assert execution_order(gpt2) == [gpt2[3], gpt2[4], gpt2[0], gpt2[1], gpt2[2]]
