"""What stores say to each other over HTTP: heads that are understood, and those that are refused."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from firstlight.domain.errors import InvalidInput, InvalidSettings
from gpu_worker.store.extents import Extent
from gpu_worker.store.peer_http import PeerRequest, Refused, asked_range, parse_request
from gpu_worker.store.peer_server import PeerServer, is_loopback
from gpu_worker.store.peer_shelf import PeerShelf
from gpu_worker.store.pool import Pool
from gpu_worker.store.sources.peer import PeerClient
from gpu_worker.store.ssd_cache import SsdCache


def head(target: str, *lines: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {target} {version}", *lines]).encode()


def refused(text: bytes) -> HTTPStatus:
    with pytest.raises(Refused) as refusal:
        parse_request(text)
    return refusal.value.status


def ranged(text: str | None, size_bytes: int) -> tuple[int, int] | None:
    headers = {} if text is None else {"range": text}
    return asked_range(PeerRequest("GET", "m@abcd", "partition-0.bin", headers), size_bytes)


def test_a_file_and_a_listing_are_asked_for() -> None:
    asked = parse_request(head("/v1/checkpoints/m%40abcd/partition-0.bin", "Range: bytes=0-1", "X: y"))
    assert (asked.checkpoint_id, asked.name) == ("m@abcd", "partition-0.bin")
    assert asked.headers == {"range": "bytes=0-1", "x": "y"} and asked.keeps_alive
    listing = parse_request(head("/v1/checkpoints/m@abcd", "Connection: close", method="HEAD"))
    assert (listing.name, listing.keeps_alive) == ("", False)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"", HTTPStatus.BAD_REQUEST),
        (b"GET /v1/checkpoints/m@abcd", HTTPStatus.BAD_REQUEST),
        (head("/v1/checkpoints/m@abcd", version="HTTP/1.0"), HTTPStatus.BAD_REQUEST),
        (head("/v1/checkpoints/m@abcd", "no colon"), HTTPStatus.BAD_REQUEST),
        (head("/v1/checkpoints/m@abcd", " folded: line"), HTTPStatus.BAD_REQUEST),
        # A body would be read as the next request.
        (head("/v1/checkpoints/m@abcd", "Content-Length: 5"), HTTPStatus.BAD_REQUEST),
        (head("/v1/checkpoints/m@abcd", "Transfer-Encoding: chunked"), HTTPStatus.BAD_REQUEST),
        (head("/v1/checkpoints/m@abcd", method="PUT"), HTTPStatus.METHOD_NOT_ALLOWED),
        (head("/etc/passwd"), HTTPStatus.NOT_FOUND),
        (head("/v1/checkpoints/m@abcd/../secret"), HTTPStatus.NOT_FOUND),
    ],
)
def test_what_is_refused(text: bytes, status: HTTPStatus) -> None:
    assert refused(text) is status


def test_ranges() -> None:
    assert ranged(None, 10) is None
    assert ranged("bytes=2-4", 10) == (2, 5)
    assert ranged("bytes=2-", 10) == (2, 10)
    assert ranged("bytes=2-99", 10) == (2, 10)
    for wrong in ("bytes=10-", "bytes=4-2", "bytes=-5", "bytes=0-1,3-4", "lines=0-1", "bytes=0-1;", ""):
        with pytest.raises(Refused) as refusal:
            ranged(wrong, 10)
        assert refusal.value.status is HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def test_beyond_loopback_nothing_is_given_without_a_secret(tmp_path: object) -> None:
    cache = SsdCache(root=tmp_path, capacity_bytes=1)  # type: ignore[arg-type]
    pool = Pool(capacity_bytes=0)

    def view(_: Extent) -> memoryview:
        raise AssertionError("nothing is resident")

    shelf = PeerShelf(cache=cache, pool=pool, view=view)
    with pytest.raises(InvalidSettings, match="without a shared secret"):
        PeerServer(shelf, on_doubt=str, bind_address="192.0.2.7", port=0, secret=None)
    PeerServer(shelf, on_doubt=str, bind_address="192.0.2.7", port=0, secret="s")
    PeerServer(shelf, on_doubt=str, bind_address="127.0.0.1", port=0, secret=None)
    cache.close()


def test_what_is_loopback() -> None:
    assert all(is_loopback(one) for one in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(one) for one in ("192.0.2.7", "::", "example.org", ""))


@pytest.mark.parametrize(
    "endpoint", ["", "host", "host:port", "host:1/x", "a b:1", "http://host:1", "h:123456"]
)
def test_a_peer_is_a_host_and_a_port(endpoint: str) -> None:
    client = PeerClient(secret=None)
    with pytest.raises(InvalidInput, match="host:port"):
        client.open(endpoint, "m@abcd")
    client.close()
