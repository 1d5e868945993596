"""As much of HTTP/1.1 as a store speaks with other stores: heads, byte ranges, keep-alive. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

HEAD_END = b"\r\n\r\n"
LONGEST_HEAD_BYTES = 8 * 2**10
_RANGE = re.compile(r"bytes=(\d{1,19})-(\d{1,19})?", re.ASCII)
_PATH = re.compile(r"/v1/checkpoints/([^/]+)(?:/([^/]*))?")


class Refused(Exception):
    """The request is answered with `status` and nothing else. Never leaves the peer server."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """`name` is empty for the list of a checkpoint's files. Header names are in lower case."""

    method: str
    checkpoint_id: str
    name: str
    headers: Mapping[str, str]

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


def parse_request(head: bytes) -> PeerRequest:
    """Raises: Refused."""
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or parts[2] != "HTTP/1.1":
        raise Refused(HTTPStatus.BAD_REQUEST)
    method, target, _ = parts
    if method not in ("GET", "HEAD", "POST"):
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Refused(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    # A body would be taken for the next request.
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        raise Refused(HTTPStatus.BAD_REQUEST)
    if (found := _PATH.fullmatch(target)) is None:
        raise Refused(HTTPStatus.NOT_FOUND)
    if method == "POST" and found[2]:
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED)
    return PeerRequest(method, unquote(found[1]), unquote(found[2] or ""), headers)


def asked_range(request: PeerRequest, size_bytes: int) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for; None for the whole. Raises: Refused."""
    text = request.headers.get("range")
    if text is None:
        return None
    if (found := _RANGE.fullmatch(text)) is None:
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    start = int(found[1])
    end = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
    if not start < end:
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    return start, end


def answer_head(status: HTTPStatus, headers: Mapping[str, str | int]) -> bytes:
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        *(f"{name}: {text}" for name, text in headers.items()),
    ]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END
