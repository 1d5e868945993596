"""A migration under streams survives the death of any one process at any point, every token exact.

A few points by default, some by chance; FAULT_CASES=all runs every point with every process: `fault_plan`.
Whoever reaches the point stands still until the kill is done: see firstlight/fault_points.py.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest

from benchmarks.migration_client import Asked, Heard, Stream
from benchmarks.platform import Platform, PlatformFailed
from firstlight.fault_points import VARIABLE
from firstlight.rpc import engine_pb2, engine_pb2_grpc
from tests.chaos.fault_driver import FaultDriver, Reached, Trap
from tests.chaos.fault_plan import Case, by_chance, named_cases
from tests.chaos.migration_platform import (
    MODEL,
    AtRest,
    Victims,
    begin,
    busiest,
    heard_afterwards,
    instances,
    is_beginning_of,
    migrate,
    migrating_platform,
    only_one,
)

SPRUNG_WITHIN_S = 60.0
# On a busy machine a destination may start for longer than streams last.
ATTEMPTS = 4


@pytest.fixture(scope="module")
def driver() -> Iterator[FaultDriver]:
    with FaultDriver() as listening:
        yield listening


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, driver: FaultDriver) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("chaos-migration")
    with migrating_platform(directory, **{VARIABLE: driver.socket}) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(platform: Platform) -> list[Heard]:
    return [stream.result() for stream in begin(platform)]


@pytest.fixture(scope="module")
def seed() -> int:
    return int(os.environ.get("FAULT_SEED") or random.randrange(1 << 32))


@pytest.mark.parametrize("case", named_cases().values(), ids=named_cases())
def test_streams_survive(
    case: Case | int, seed: int, platform: Platform, driver: FaultDriver, undisturbed: list[Heard]
) -> None:
    print(f"FAULT_SEED={seed}")
    point, victim = by_chance(seed, case) if isinstance(case, int) else case
    print(f"FAULT_CASES='{point}/{victim}'")
    for _ in range(ATTEMPTS):
        streams, killed, is_sprung = kill_at(point, victim, platform, driver)
        if is_sprung:
            break
        check_streams(streams, undisturbed, is_cut=False, what="nobody")
        AtRest(platform).wait()
    assert is_sprung, f"{point!r} was never reached: {platform.get('/admin/v1/migrations?limit=2')}"
    check_streams(streams, undisturbed, is_cut=victim == "api" and bool(killed), what=f"{victim} {killed}")
    AtRest(platform).wait()


def kill_at(
    point: str, victim: str, platform: Platform, driver: FaultDriver
) -> tuple[list[Stream], list[int], bool]:
    """Streams under which an instance is moved, who was killed, and whether the point was reached at all."""
    victims = Victims(platform)
    begun: dict[str, Any] = {}
    is_begun = threading.Event()
    killed: list[int] = []

    def kill(reached: Reached) -> None:
        killed.extend(victims.pids(victim, begun))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    def is_wanted(reached: Reached) -> bool:
        return is_begun.wait(SPRUNG_WITHIN_S) and concerns(reached, begun)

    only_one(platform)
    streams = begin(platform)
    source = busiest(platform)
    trap = driver.arm(point, kill, is_wanted=is_wanted)
    begun |= migrate(platform, source["instance_id"])
    is_begun.set()
    is_sprung = wait_sprung(trap, platform, begun)
    driver.disarm()
    assert trap.failure is None, trap.failure
    return streams, killed, is_sprung


def wait_sprung(trap: Trap, platform: Platform, begun: dict[str, Any]) -> bool:
    """False when all is over and the point never came: the streams had ended before they could move."""
    until_s = time.monotonic() + SPRUNG_WITHIN_S
    while not trap.sprung.wait(0.5) and time.monotonic() < until_s:
        # The API, or its database, may be who is killed in this very moment.
        with suppress(httpx.HTTPError):
            if is_over(platform, begun):
                return trap.sprung.wait(2.0)
    return trap.sprung.is_set()


def is_over(platform: Platform, begun: dict[str, Any]) -> bool:
    rows = platform.get("/admin/v1/migrations")["migrations"]
    states = {row["migration_id"]: row["state"] for row in rows}
    live = {row["instance_id"]: row["state"] for row in instances(platform)}
    is_at_rest = live.get(begun["source_instance_id"]) in (None, "ready")
    return states[begun["migration_id"]] != "running" and is_at_rest


def concerns(reached: Reached, begun: dict[str, Any]) -> bool:
    """Whether this is a boundary of our migration, and not of another instance's life."""
    if not reached.of.startswith(("migration/", "instance/", "cold-start/")):
        return True
    return any(
        reached.of.endswith(begun[f"{side}_instance_id"]) for side in ("source", "destination")
    ) or reached.of.startswith(f"migration/{begun['source_instance_id']}")


def check_streams(streams: list[Stream], undisturbed: list[Heard], *, is_cut: bool, what: str) -> None:
    for number, (stream, whole) in enumerate(zip(streams, undisturbed, strict=True)):
        heard = stream.heard
        if is_cut:
            stream.wait_end()
        else:
            try:
                heard_afterwards(stream)
            except PlatformFailed as failure:
                raise AssertionError(f"stream {number}, killed {what}: {failure}") from failure
        is_right = is_beginning_of(heard, whole) if heard.finish_reason is None else heard.is_same_as(whole)
        assert is_right, f"stream {number}, killed {what}: {first_difference(heard, whole)}"


def first_difference(heard: Heard, whole: Heard) -> str:
    pairs = enumerate(zip(heard.tokens, whole.tokens, strict=False))
    same = min(len(heard.tokens), len(whole.tokens))
    at = next((at for at, (mine, theirs) in pairs if mine != theirs), same)
    return (
        f"{len(heard.tokens)} tokens ({heard.finish_reason}, usage {heard.completion_tokens}), not "
        f"{len(whole.tokens)} ({whole.finish_reason}); they differ from token {at}: "
        f"{heard.tokens[at : at + 3]} for {whole.tokens[at : at + 3]}"
    )


def test_two_migrations_at_once_and_a_stale_epoch_change_nothing(
    platform: Platform, undisturbed: list[Heard]
) -> None:
    streams = begin(platform)
    begun = migrate(platform, busiest(platform)["instance_id"])
    path = f"{platform.api_url}/admin/v1/instances/{begun['source_instance_id']}/migrate"
    second = platform.http.post(path, json={})
    assert second.status_code in (404, 409), second.text
    [source] = [row for row in instances(platform) if row["instance_id"] == begun["source_instance_id"]]
    stale = engine_pb2.MigrateOutRequest(
        epoch=source["epoch"] + 100,
        migration_id="stale",
        destination_instance_id="nobody",
        destination_endpoint="127.0.0.1:1",
        destination_epoch=1,
    )
    with grpc.insecure_channel(source["endpoint"]) as channel, pytest.raises(grpc.RpcError) as refused:
        list(engine_pb2_grpc.InferenceStub(channel).MigrateOut(stale, timeout=5))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    check_streams(streams, undisturbed, is_cut=False, what="nobody")
    AtRest(platform).wait()


def test_a_client_that_hangs_up_while_its_request_stands_still_leaves_nothing(
    platform: Platform, driver: FaultDriver, undisturbed: list[Heard]
) -> None:
    only_one(platform)
    streams = begin(platform)
    leaving = Leaving(platform.api_url)
    trap = driver.arm(
        "request held", lambda reached: leaving.hang_up(), is_wanted=lambda r: r.of in leaving.answer_id
    )
    migrate(platform, busiest(platform)["instance_id"])
    assert trap.sprung.wait(SPRUNG_WITHIN_S) and trap.failure is None, trap.failure
    check_streams(streams, undisturbed, is_cut=False, what="nobody")
    AtRest(platform).wait()


class Leaving:
    """A client whose connection can be ended while nothing comes, from any thread."""

    def __init__(self, api_url: str) -> None:
        url = urlsplit(api_url)
        self._connection = HTTPConnection(str(url.hostname), int(url.port or 80), timeout=60)
        body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 3800, "stream": True, "ignore_eos": True}
        headers = {"content-type": "application/json"}
        self._connection.request("POST", "/v1/completions", json.dumps(body), headers)
        # Kept: without it the connection is not read from any more, and closes.
        self._socket = self._connection.sock
        answer = self._connection.getresponse()
        lines = [line for line in (answer.readline() for _ in range(40)) if line.startswith(b"data: {")]
        self.answer_id: str = json.loads(lines[0][6:])["id"]

    def hang_up(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def test_a_migration_to_a_full_host_changes_nothing(platform: Platform, undisturbed: list[Heard]) -> None:
    only_one(platform)
    [source] = instances(platform)
    # Nobody ends it, or moves it, to make room for a filler.
    platform.post(f"/admin/v1/models/{MODEL}/scale", {"priority": 1})
    hosts = platform.get("/admin/v1/hosts")["hosts"]
    [other] = [host["host_id"] for host in hosts if host["host_id"] != source["host_id"]]
    free = sum(gpu["instance_id"] is None for host in hosts for gpu in host["gpus"])
    source_uri = platform.get(f"/admin/v1/models/{MODEL}")["source"]
    fillers = [f"filler-{number}" for number in range(free)]
    for name in fillers:
        settings = {"name": name, "source": source_uri, "max_concurrency": 1}
        platform.post("/admin/v1/models", settings)
    busy = [Stream(platform.api_url, name, Asked((5, 6, 7), 3800, 0.0, 0)) for name in fillers]
    for stream in busy:
        stream.wait_tokens(1)
    streams = begin(platform)
    path = f"{platform.api_url}/admin/v1/instances/{source['instance_id']}/migrate"
    refused = platform.http.post(path, json={"to": other})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_capacity"), refused.text
    for stream in busy:
        stream.hang_up()
    check_streams(streams, undisturbed, is_cut=False, what="nobody")
    for name in fillers:
        assert platform.http.delete(f"{platform.api_url}/admin/v1/models/{name}").status_code in (200, 202)
    platform.wait_for(
        lambda: len(platform.get("/admin/v1/models")["models"]) == 1, what="the fillers to go", deadline_s=90
    )
    platform.post(f"/admin/v1/models/{MODEL}/scale", {"priority": 0})
    AtRest(platform).wait()


def test_no_session_is_left(platform: Platform) -> None:
    """Behind all of the above: what a dead source had sent, and nobody asked for, is forgotten."""
    AtRest(platform).wait_sessions_gone()
