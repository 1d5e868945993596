"""Live migration on the whole platform with the real model: clients notice nothing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from benchmarks.platform import Platform
from tests.integration.engine_fixtures import smollm2_gguf
from tests.platform_fixtures import running_platform, tiny_source

MODEL = "smollm2"
PINNED, WIDE = "pinned", "wide"
QUESTIONS = ("Tell me a story of a fox.", "Explain how rain forms.", "Write a poem about the sea.")
TOKENS = 120


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_platform(tmp_path_factory.mktemp("migration")) as running:
        source = smollm2_gguf().as_uri()
        running.post(
            "/admin/v1/models",
            {"name": MODEL, "source": source, "keep_alive_s": 600, "max_concurrency": 4},
        )
        yield running


@pytest.fixture(scope="module")
def client(platform: Platform) -> OpenAI:
    return OpenAI(base_url=f"{platform.api_url}/v1", api_key="none", max_retries=0, timeout=300)


class Stream:
    """One client's stream, read by a thread of its own."""

    def __init__(self, client: OpenAI, question: str, **settings: Any) -> None:
        self._client = client
        self._question = question
        self._settings = settings
        self.pieces = 0
        self.has_begun = threading.Event()

    def read(self) -> tuple[str, str | None, int]:
        """Text, finish reason, completion tokens."""
        text, finish, used = "", None, 0
        stream = self._client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": self._question}],
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
            **self._settings,
        )
        for chunk in stream:
            if chunk.usage is not None:
                used = chunk.usage.completion_tokens
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
                self.pieces += bool(choice.delta.content)
                if self.pieces >= 5:
                    self.has_begun.set()
        return text, finish, used


Answers = list[tuple[str, str | None, int]]


def streams(client: OpenAI) -> list[Stream]:
    greedy = [Stream(client, question, temperature=0) for question in QUESTIONS]
    return [*greedy[:2], Stream(client, QUESTIONS[2], temperature=1, seed=5)]


def read_all(pool: ThreadPoolExecutor, begun: list[Stream]) -> list[Future[tuple[str, str | None, int]]]:
    reading = [pool.submit(stream.read) for stream in begun]
    for stream in begun:
        assert stream.has_begun.wait(120)
    return reading


def ready_instance(platform: Platform) -> dict[str, Any]:
    [instance] = [one for one in platform.get("/admin/v1/instances")["instances"] if one["state"] == "ready"]
    return dict(instance)


def ended_migration(platform: Platform, migration_id: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for row in platform.get("/admin/v1/migrations")["migrations"]:
            if row["migration_id"] == migration_id and row["state"] != "running":
                return dict(row)
        time.sleep(0.1)
    raise AssertionError(f"{migration_id} did not end")


def hosts_of_instances(platform: Platform) -> set[str]:
    live = ("starting", "ready", "draining")
    found = platform.get("/admin/v1/instances")["instances"]
    return {one["host_id"] for one in found if one["state"] in live}


def until_only_on(platform: Platform, host_id: str) -> None:
    deadline_s = time.monotonic() + 60
    while hosts_of_instances(platform) != {host_id}:
        assert time.monotonic() < deadline_s, hosts_of_instances(platform)
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(client: OpenAI) -> Answers:
    with ThreadPoolExecutor(8) as pool:
        return [reading.result() for reading in read_all(pool, streams(client))]


def test_streams_go_on_while_an_operator_moves_their_instance(
    platform: Platform, client: OpenAI, undisturbed: Answers
) -> None:
    source = ready_instance(platform)
    [other] = {host["host_id"] for host in platform.get("/admin/v1/hosts")["hosts"]} - {source["host_id"]}
    with ThreadPoolExecutor(8) as pool:
        reading = read_all(pool, streams(client))
        begun = platform.post(f"/admin/v1/instances/{source['instance_id']}/migrate", {"to": other})
        answers = [one.result() for one in reading]
    assert answers == undisturbed
    ended = ended_migration(platform, begun["migration_id"])
    assert (ended["state"], ended["failure"]) == ("completed", None)
    assert ended["requests_moved"] == len(QUESTIONS)
    assert ended["rounds"] >= 1 and ended["tokens_moved"] > 0 and ended["pause_s"] > 0
    figures = platform.http.get(f"{platform.api_url}/metrics").text
    assert re.search(r"^firstlight_migration_pause_seconds_count(?:{[^}]*})? [1-9]", figures, re.MULTILINE)
    # The source gave its GPU back, and the destination serves.
    until_only_on(platform, other)


def test_a_drained_host_is_emptied_without_a_failed_request(
    platform: Platform, client: OpenAI, undisturbed: Answers
) -> None:
    source = ready_instance(platform)
    with ThreadPoolExecutor(8) as pool:
        reading = read_all(pool, streams(client))
        answer = platform.post(f"/admin/v1/hosts/{source['host_id']}/drain", {})
        assert (answer["state"], answer["live_instances"]) == ("draining", 1)
        answers = [one.result() for one in reading]
    assert answers == undisturbed
    [other] = {host["host_id"] for host in platform.get("/admin/v1/hosts")["hosts"]} - {source["host_id"]}
    until_only_on(platform, other)
    platform.post(f"/admin/v1/hosts/{source['host_id']}/undrain", {})
    states = {host["host_id"]: host["state"] for host in platform.get("/admin/v1/hosts")["hosts"]}
    assert set(states.values()) == {"ready"}


def test_what_cannot_move_says_why(platform: Platform) -> None:
    instance = ready_instance(platform)
    path = f"{platform.api_url}/admin/v1/instances/{instance['instance_id']}/migrate"
    here = platform.http.post(path, json={"to": instance["host_id"]})
    assert here.status_code == 409 and "runs on" in here.json()["error"]["message"]
    nowhere = platform.http.post(path, json={"to": "host-x"})
    assert nowhere.status_code == 404
    unknown = platform.http.post(f"{platform.api_url}/admin/v1/instances/i-0/migrate", json={})
    assert unknown.status_code == 404
    assert platform.http.post(f"{platform.api_url}/admin/v1/hosts/host-x/drain").status_code == 404


def live_of(platform: Platform, name: str) -> list[dict[str, Any]]:
    live = ("starting", "ready", "draining")
    found = platform.get(f"/admin/v1/instances?model={name}")["instances"]
    return [dict(one) for one in found if one["state"] in live]


def ready_instance_of(platform: Platform, name: str) -> dict[str, Any]:
    [instance] = [one for one in live_of(platform, name) if one["state"] == "ready"]
    return instance


def until_runs_on(platform: Platform, name: str, host_id: str) -> None:
    deadline_s = time.monotonic() + 60
    while [one["host_id"] for one in live_of(platform, name)] != [host_id]:
        assert time.monotonic() < deadline_s, live_of(platform, name)
        time.sleep(0.1)


def started(platform: Platform, name: str) -> dict[str, Any]:
    return dict(platform.post(f"/admin/v1/models/{name}/start", {}))


def test_running_streams_make_room_for_another_model(
    platform: Platform, client: OpenAI, undisturbed: Answers, tmp_path: Path
) -> None:
    """A model of two GPUs fits nowhere unless the busy instance moves beside one that cannot."""
    source = ready_instance(platform)
    one, other = sorted(host["host_id"] for host in platform.get("/admin/v1/hosts")["hosts"])
    small = {"keep_alive_s": 600, "min_instances": 1}
    platform.post(
        "/admin/v1/models", {"name": PINNED, "source": tiny_source(tmp_path / PINNED).as_uri(), **small}
    )
    pinned = started(platform, PINNED)["host_id"]
    free = other if pinned == one else one
    # To `free` in the end, and it has left its bytes on the other host too.
    for host_id in [free] if source["host_id"] == pinned else [pinned, free]:
        instance = ready_instance_of(platform, MODEL)
        begun = platform.post(f"/admin/v1/instances/{instance['instance_id']}/migrate", {"to": host_id})
        assert ended_migration(platform, begun["migration_id"])["state"] == "completed"
        until_runs_on(platform, MODEL, host_id)
    before = {row["migration_id"] for row in platform.get("/admin/v1/migrations")["migrations"]}
    wide = {"name": WIDE, "source": tiny_source(tmp_path / WIDE, seed=1).as_uri(), "gpu_count": 2}
    platform.post("/admin/v1/models", {**wide, "keep_alive_s": 600})
    with ThreadPoolExecutor(8) as pool:
        reading = read_all(pool, streams(client))
        wide_start = started(platform, WIDE)
        answers = [one.result() for one in reading]
    assert answers == undisturbed
    assert (wide_start["state"], wide_start["host_id"]) == ("ready", free)
    [moved] = [
        row for row in platform.get("/admin/v1/migrations")["migrations"] if row["migration_id"] not in before
    ]
    moved = ended_migration(platform, moved["migration_id"])
    assert (moved["state"], moved["failure"]) == ("completed", None)
    assert (moved["source_host_id"], moved["destination_host_id"]) == (free, pinned)
    assert moved["reason"] == f"it makes room for {WIDE}"
    assert moved["requests_moved"] == len(QUESTIONS)
    [start] = platform.get(f"/admin/v1/starts?model={WIDE}")["starts"]
    decision = platform.get(f"/admin/v1/decisions/{start['decision_id']}")
    assert decision["kind"] == "migrate"
    assert start["predicted"]["free_s"] >= 0 and start["actual"]["free_s"] >= 0
