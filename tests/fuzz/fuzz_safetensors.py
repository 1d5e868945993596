"""Atheris target: whatever bytes come, a safetensors header is believed or refused with SourceCorrupt.

    python tests/fuzz/fuzz_safetensors.py CORPUS [-max_total_time=SECONDS]

What is believed here, the format's own library must believe too: nothing is accepted that only we accept.
"""

from __future__ import annotations

import sys

import atheris
import safetensors
from instrumentation import instrument

from firstlight.domain.errors import SourceCorrupt
from native_loader import safetensors_header
from native_loader.safetensors_header import header_length, parse_header

LARGEST_FILE_BYTES = 1 << 20


def check(file: bytes) -> None:
    try:
        length = header_length(file[:8], file_bytes=len(file))
        header = parse_header(file[8 : 8 + length], file_bytes=len(file))
    except SourceCorrupt:
        return
    end = 8 + length
    for tensor in header.tensors.values():
        assert tensor.offset == end, "tensors follow each other"
        end += tensor.size_bytes
    assert end == len(file), "and cover the file"
    theirs = dict(safetensors.deserialize(file))
    assert set(theirs) == set(header.tensors)
    for name, tensor in header.tensors.items():
        assert tuple(theirs[name]["shape"]) == tensor.shape


def test_one_input(data: bytes) -> None:
    """As a file; and as a header alone, before as many bytes of data as it asks for."""
    check(data)
    for data_bytes in (0, 8, asked_for(data)):
        check(len(data).to_bytes(8, "little") + data + bytes(data_bytes))


def asked_for(header: bytes) -> int:
    """The largest number in it that a small file could have."""
    numbers = [
        int(word) for word in header.replace(b"]", b",").split(b",") if word.isdigit() and len(word) < 7
    ]
    return min(max(numbers, default=0), LARGEST_FILE_BYTES)


if __name__ == "__main__":
    instrument(safetensors_header)
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
