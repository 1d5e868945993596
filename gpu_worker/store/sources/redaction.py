"""What of a source's address may be said in a message or a log: never a user, a password or a signature."""

from __future__ import annotations

import re

_USER = re.compile(r"(\w+://)[^/\s@]*@")
_QUERY = re.compile(r"[?#][^\s'\"()<>]*")


def redacted(text: str) -> str:
    """`text` with the user of every address, and all that follows a question mark or hash, left out."""
    return _QUERY.sub("?…", _USER.sub(r"\1", text))
