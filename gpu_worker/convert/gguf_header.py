"""How long the header of a GGUF file is, while only its beginning is there. Reads no value but lengths."""

from __future__ import annotations

import struct

from firstlight.domain.errors import SourceCorrupt, SourceUnsupported

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Bytes of a value, by the number of its type.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_LONGEST_NAME = 2**16
_MOST_DIMENSIONS = 4


class _More(Exception):
    """What is there ends before the header does."""


def header_end(begun: bytes) -> int | None:
    """Bytes of the header and the table of tensors; None when `begun` holds only a part of them.

    Raises: SourceCorrupt, SourceUnsupported.
    """
    walk = _Walk(begun)
    try:
        return walk.run()
    except _More:
        return None


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def run(self) -> int:
        if self._data[: len(MAGIC)] != MAGIC[: len(self._data)]:
            raise SourceCorrupt("the file does not begin as a GGUF file does")
        self._skip(len(MAGIC))
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            raise SourceUnsupported(f"GGUF {'of big-endian machines' if swapped else f'version {version}'}")
        tensors, values = self._number("<Q"), self._number("<Q")
        for _ in range(values):
            self._name()
            self._value(self._number("<I"))
        for _ in range(tensors):
            self._tensor()
        return self._at

    def _tensor(self) -> None:
        self._name()
        if (dimensions := self._number("<I")) > _MOST_DIMENSIONS:
            raise SourceCorrupt(f"the GGUF file has a tensor of {dimensions} dimensions")
        # Sizes, type, offset.
        self._skip(8 * dimensions + 4 + 8)

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip(self._number("<Q"))
        elif kind == _ARRAY:
            self._array(self._number("<I"), self._number("<Q"))
        else:
            self._skip(self._width(kind))

    def _array(self, kind: int, count: int) -> None:
        if kind != _STRING:
            self._skip(self._width(kind) * count)
            return
        for _ in range(count):
            self._skip(self._number("<Q"))

    def _width(self, kind: int) -> int:
        if kind not in _WIDTHS:
            raise SourceCorrupt(f"the GGUF file has a value of the unknown type {kind}")
        return _WIDTHS[kind]

    def _name(self) -> None:
        if (length := self._number("<Q")) > _LONGEST_NAME:
            raise SourceCorrupt(f"the GGUF file has a name of {length} bytes")
        self._skip(length)

    def _number(self, form: str) -> int:
        at = self._at
        self._skip(struct.calcsize(form))
        (found,) = struct.unpack_from(form, self._data, at)
        return int(found)

    def _skip(self, size_bytes: int) -> None:
        self._at += size_bytes
        if self._at > len(self._data):
            raise _More
