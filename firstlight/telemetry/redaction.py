"""Secrets kept out of log lines, whoever wrote them: known values, and what looks like a credential."""

from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "***"
# Shorter ones would take ordinary words out of lines.
SHORTEST_SECRET = 6
_PASSWORD_IN_URL = re.compile(r"(?<=://)([^\s:/@]*):[^\s/@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")
# Our own API keys, and access tokens of the Hugging Face hub.
_TOKEN = re.compile(r"\b(?:fl-|hf_)[\w-]{20,}")
# Parameters by which signed URLs of object stores and tokens travel.
_PARAMETER = re.compile(
    r"(?i)\b(x-amz-signature|x-amz-security-token|x-goog-signature|sig|token|api[_-]?key|secret|password)"
    r"=[^\s&\"']+"
)
# Scheme, user, host and path, query or fragment.
_ADDRESS = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]*://)([^\s/?#'\"<>]*@)?([^\s?#'\"<>]*)([?#][^\s'\"<>]*)?", re.ASCII
)


def hide_in_addresses(text: str) -> str:
    """Without user and query of any URL, whatever they are called: what is kept for years needs neither."""
    return _ADDRESS.sub(_bare, text)


def _bare(address: re.Match[str]) -> str:
    scheme, user, place, query = address.groups(default="")
    return f"{scheme}{user and HIDDEN + '@'}{place}{query and query[0] + HIDDEN}"


class Redaction:
    """`secrets` are values of this process's settings; each is hidden wherever it stands."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first: one may contain another.
        known = sorted({one for one in secrets if len(one) >= SHORTEST_SECRET}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def hide(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _PASSWORD_IN_URL.sub(rf"\1:{HIDDEN}@", text)
        text = _TOKEN.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        return _PARAMETER.sub(rf"\1={HIDDEN}", text)
