"""The length of a GGUF header, told from any beginning of the file."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import pytest

from firstlight.domain.errors import SourceCorrupt, SourceError, SourceUnsupported
from gpu_worker.convert.gguf_header import header_end
from gpu_worker.convert.packed_types import PACKED
from tests.integration.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", "llama", words=20).read_bytes()


def test_it_ends_where_the_first_tensor_may_begin(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(data)
    end = header_end(data)
    assert end is not None
    assert 0 <= gguf.GGUFReader(tmp_path / "m.gguf").data_offset - end < gguf.GGUF_DEFAULT_ALIGNMENT


def test_a_part_of_it_is_known_as_a_part(data: bytes) -> None:
    end = header_end(data)
    assert end is not None
    assert all(header_end(data[:size]) is None for size in range(end))
    assert all(header_end(data[:size]) == end for size in range(end, end + 64))


def test_nonsense_is_an_error_and_nothing_else(data: bytes) -> None:
    end = header_end(data)
    assert end is not None
    chance = random.Random(11)
    for _ in range(3000):
        damaged = bytearray(data[:end])
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(end)] = chance.randrange(256)
        try:
            found = header_end(bytes(damaged))
        except SourceError:
            continue
        assert found is None or 24 <= found <= end


def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(SourceCorrupt, match="begin"):
        header_end(b"PK\x03\x04" + data[4:])
    with pytest.raises(SourceUnsupported, match="big-endian"):
        header_end(data[:4] + data[4:8][::-1] + data[8:])
    with pytest.raises(SourceUnsupported, match="version 1"):
        header_end(data[:4] + (1).to_bytes(4, "little") + data[8:])


def test_packed_types_are_those_that_gguf_unpacks() -> None:
    known = {kind.name: tuple(gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.quants._type_traits}
    assert {name: tuple(block) for name, block in PACKED.items()} == {
        name: sizes for name, sizes in known.items() if name != "BF16"
    }
