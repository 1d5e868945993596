"""The bytes one token stands for, whatever way its vocabulary writes them down."""

from __future__ import annotations

import re
from functools import cache

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@cache
def _byte_of_letter() -> dict[str, int]:
    """Byte-level BPE writes each byte as one printable letter; this is the way back.

    Printable Latin-1 bytes stand for themselves; the others follow in order from U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in set(printable)]
    letters = {chr(value): value for value in printable}
    letters.update({chr(0x100 + rank): value for rank, value in enumerate(hidden)})
    return letters


def byte_level_bytes(token: str) -> bytes:
    """Bytes of a byte-level token; an added token with letters of its own is plain UTF-8."""
    letters = _byte_of_letter()
    try:
        return bytes(letters[letter] for letter in token)
    except KeyError:
        return token.encode("utf-8")


def fallback_byte(token: str) -> bytes | None:
    """The byte of a `<0xNN>` token, or None for any other."""
    found = _FALLBACK.fullmatch(token)
    return bytes([int(found.group(1), 16)]) if found else None
