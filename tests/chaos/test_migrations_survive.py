"""A migration under streams survives the death of any one process: every token exact, nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from benchmarks.migration_client import Asked, Heard, Stream
from benchmarks.platform import Platform, PlatformFailed
from firstlight.rpc import engine_pb2, engine_pb2_grpc, host_pb2, host_pb2_grpc
from tests.integration.store_processes import command_line, descendants
from tests.platform_fixtures import running_platform, tiny_source

MODEL = "tiny"
LIVE = ("starting", "ready", "draining")
ASKED = [
    Asked(tuple(range(5, 45)), 1500, 0.0, 0),
    Asked(tuple(range(60, 70)), 1500, 1.0, 7),
    Asked(tuple(range(5, 205)), 1200, 0.0, 0),
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    directory = tmp_path_factory.mktemp("chaos-migration")
    with running_platform(directory) as running:
        source = tiny_source(directory / "hf", context=4096).as_uri()
        settings = {"keep_alive_s": 600, "max_concurrency": 8, "max_instances": 2}
        running.post("/admin/v1/models", {"name": MODEL, "source": source, **settings})
        yield running


@pytest.fixture(scope="module")
def undisturbed(platform: Platform) -> list[Heard]:
    return [stream.result() for stream in begin(platform)]


def begin(platform: Platform) -> list[Stream]:
    streams = [Stream(platform.api_url, MODEL, asked) for asked in ASKED]
    for stream in streams:
        stream.wait_tokens(20)
    return streams


def instances(platform: Platform) -> list[dict[str, Any]]:
    rows = platform.get(f"/admin/v1/instances?model={MODEL}")["instances"]
    return [row for row in rows if row["state"] in LIVE]


def engine_pid(platform: Platform, instance_id: str) -> int | None:
    for host in platform.get("/admin/v1/hosts")["hosts"]:
        with grpc.insecure_channel(host["host_address"]) as channel:
            reply = host_pb2_grpc.HostStub(channel).ListEngines(host_pb2.ListEnginesRequest(), timeout=5)
        for engine in reply.engines:
            if engine.instance_id == instance_id:
                return int(engine.pid)
    return None


def pids_of(platform: Platform, victim: str, begun: dict[str, Any]) -> list[int]:
    words = {
        "control-worker": "serve control-worker",
        "host-agents": "serve host-agent",
        "temporal server": "server start-dev",
        "stores": "gpu_worker.store",
    }
    if victim in words:
        return [pid for pid in descendants(platform.launcher_pid) if words[victim] in command_line(pid)]
    name = {"source engine": "source_instance_id", "destination engine": "destination_instance_id"}[victim]
    pid = engine_pid(platform, begun[name])
    return [] if pid is None else [pid]


def migrate(platform: Platform) -> dict[str, Any]:
    ready = [row for row in instances(platform) if row["state"] == "ready"]
    begun: dict[str, Any] = platform.post(f"/admin/v1/instances/{ready[0]['instance_id']}/migrate")
    return begun


def wait_until_settled(platform: Platform) -> None:
    """No migration runs, everything live is ready, and the GPUs held are those of what is live."""

    def is_settled() -> bool:
        rows = platform.get("/admin/v1/migrations?limit=50")["migrations"]
        live = instances(platform)
        gpus = [gpu for host in platform.get("/admin/v1/hosts")["hosts"] for gpu in host["gpus"]]
        held = sum(gpu["instance_id"] is not None for gpu in gpus)
        is_quiet = all(row["state"] != "running" for row in rows)
        return is_quiet and bool(live) and {row["state"] for row in live} == {"ready"} and held == len(live)

    platform.wait_for(is_settled, what="everything to be finished or undone", deadline_s=120)
    for row in instances(platform):
        with grpc.insecure_channel(row["endpoint"]) as channel:
            stub = engine_pb2_grpc.InferenceStub(channel)
            status = stub.Status(engine_pb2.EngineStatusRequest(), timeout=5)
        assert (status.running, status.waiting) == (0, 0), status


VICTIMS = [
    "source engine",
    "destination engine",
    "host-agents",
    "control-worker",
    "temporal server",
    "stores",
]


@pytest.mark.parametrize("victim", VICTIMS)
def test_streams_survive_a_migration_and_the_death_of(
    victim: str, platform: Platform, undisturbed: list[Heard]
) -> None:
    streams = begin(platform)
    begun = migrate(platform)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    pids = pids_of(platform, victim, begun)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    heard = []
    for number, stream in enumerate(streams):
        try:
            heard.append(stream.result())
        except PlatformFailed as failure:
            raise AssertionError(f"stream {number} of {victim} {pids}: {failure}") from failure
    same = [mine.is_same_as(theirs) for mine, theirs in zip(heard, undisturbed, strict=True)]
    assert all(same), f"{victim}: streams {same}"
    wait_until_settled(platform)


def test_two_migrations_at_once_and_a_stale_epoch_change_nothing(
    platform: Platform, undisturbed: list[Heard]
) -> None:
    streams = begin(platform)
    begun = migrate(platform)
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
    heard = [stream.result() for stream in streams]
    assert all(mine.is_same_as(theirs) for mine, theirs in zip(heard, undisturbed, strict=True))
    wait_until_settled(platform)
