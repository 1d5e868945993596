"""No single bit of a checkpoint can change unnoticed on its way from the disk."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from firstlight.domain.errors import ChecksumMismatch
from native_loader import Arena, CheckpointWriter, LoadJob, ProgressBoard, Segment, crc32c, open_checkpoint
from native_loader.verification import find_damage

FLIPS = 10_000
CHUNK = 64 << 10


def test_ten_thousand_flipped_bits_are_all_caught() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    chunk = bytearray(rng.randbytes(CHUNK))
    expected = crc32c(chunk)
    for _ in range(FLIPS):
        bit = rng.randrange(CHUNK * 8)
        chunk[bit // 8] ^= 1 << bit % 8
        assert crc32c(chunk) != expected, f"bit {bit}"
        chunk[bit // 8] ^= 1 << bit % 8
    assert crc32c(chunk) == expected


def test_ten_thousand_flipped_bits_on_the_disk_are_all_named(tmp_path: Path) -> None:
    """One in every chunk of a checkpoint, found by reading the files as a load does."""
    seed = random.SystemRandom().randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    with CheckpointWriter(tmp_path / "c", source="test", revision="0", chunk_bytes=4096) as writer:
        writer.add_tensor("w", rng.randbytes(FLIPS * 4096), dtype="U8", shape=[FLIPS * 4096])
        writer.commit()
    with (tmp_path / "c" / "partition-0.bin").open("r+b") as file:
        for chunk in range(FLIPS):
            bit = rng.randrange(4096 * 8)
            file.seek(chunk * 4096 + bit // 8)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ (1 << bit % 8)]))
    found = [damage.chunk for damage in find_damage(open_checkpoint(tmp_path / "c"), threads=1)]
    assert sorted(chunk for chunk in found if chunk is not None) == list(range(FLIPS))


@pytest.mark.parametrize("backend", ["auto", "threads"])
def test_a_flipped_bit_on_the_disk_fails_the_load_and_names_its_chunk(tmp_path: Path, backend: str) -> None:
    """The whole way: file, direct read, sum, read again, error. Only the other chunks are given out."""
    rng = random.Random(7)
    path = tmp_path / "partition-0.bin"
    content = bytearray(rng.randbytes(16 * CHUNK))
    segments = [
        Segment(
            path=str(path),
            file_offset=at,
            length=CHUNK,
            arena_offset=at,
            crc32c=crc32c(content[at : at + CHUNK]),
        )
        for at in range(0, len(content), CHUNK)
    ]
    path.write_bytes(content)
    with Arena(2 << 20) as arena, path.open("r+b") as file:
        for _ in range(150):
            bit = rng.randrange(len(content) * 8)
            file.seek(bit // 8)
            file.write(bytes([content[bit // 8] ^ (1 << bit % 8)]))
            file.flush()
            board = ProgressBoard([CHUNK] * 16)
            with pytest.raises(ChecksumMismatch) as caught:
                LoadJob(arena, segments, backend=backend, block_bytes=16 << 10, board=board).result(30)
            assert caught.value.fields["chunk"] == bit // 8 // CHUNK
            assert not board.is_chunk_done(bit // 8 // CHUNK)
            file.seek(bit // 8)
            file.write(bytes([content[bit // 8]]))
            file.flush()
        assert LoadJob(arena, segments, backend=backend).result(30).read_again == []
