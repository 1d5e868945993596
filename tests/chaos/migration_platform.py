"""A platform whose instance is moved under streams: its processes by name, and what must be true at rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psycopg
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

from benchmarks.migration_client import Asked, Heard, Stream
from benchmarks.platform import Platform, PlatformFailed
from firstlight.contracts import naming
from firstlight.contracts.instances import StopSignal
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from firstlight.rpc import engine_pb2, engine_pb2_grpc, host_pb2, host_pb2_grpc, store_pb2, store_pb2_grpc
from tests.integration.store_processes import command_line, descendants, is_alive
from tests.platform_fixtures import running_platform, tiny_source

MODEL = "tiny"
LIVE = ("starting", "ready", "draining")
# The first ends by itself, perhaps in the middle; the others are long enough for any machine to be in time.
ASKED = [
    Asked(tuple(range(5, 205)), 800, 0.0, 0),
    Asked(tuple(range(60, 70)), 2600, 1.0, 7),
    Asked(tuple(range(5, 45)), 2600, 0.0, 0),
]
HEARD_AFTERWARDS = 100
SETTLED_WITHIN_S = 120.0
# A session nobody attached is forgotten after 30 s.
FORGOTTEN_WITHIN_S = 45.0


@contextmanager
def migrating_platform(directory: Path, **env: str) -> Iterator[Platform]:
    with running_platform(directory, **env) as running:
        source = tiny_source(directory / "hf", context=4096).as_uri()
        settings = {"keep_alive_s": 600, "max_concurrency": 8, "max_instances": 2}
        running.post("/admin/v1/models", {"name": MODEL, "source": source, **settings})
        yield running


def begin(platform: Platform) -> list[Stream]:
    streams = [Stream(platform.api_url, MODEL, asked) for asked in ASKED]
    for stream in streams:
        stream.wait_tokens(20)
    return streams


def instances(platform: Platform) -> list[dict[str, Any]]:
    rows = platform.get(f"/admin/v1/instances?model={MODEL}")["instances"]
    return [row for row in rows if row["state"] in LIVE]


def busiest(platform: Platform) -> dict[str, Any]:
    """The ready instance that runs most requests: the one worth moving."""
    ready = [row for row in instances(platform) if row["state"] == "ready"]
    return max(ready, key=lambda row: engine_status(row["endpoint"]).running)


def only_one(platform: Platform) -> None:
    """End all instances but one: what an earlier death left would be a destination that is there already."""
    platform.post(f"/admin/v1/models/{MODEL}/start", {"wait": True})
    for row in instances(platform)[1:]:
        asyncio.run(_tell_to_stop(platform.record.temporal_address, row["instance_id"]))
    platform.wait_for(lambda: len(instances(platform)) == 1, what="one instance", deadline_s=SETTLED_WITHIN_S)


async def _tell_to_stop(address: str, instance_id: str) -> None:
    handle = (await Client.connect(address)).get_workflow_handle(naming.instance_workflow_id(instance_id))
    await handle.signal(naming.STOP, StopSignal("not needed", 10.0))


def migrate(platform: Platform, instance_id: str) -> dict[str, Any]:
    begun: dict[str, Any] = platform.post(f"/admin/v1/instances/{instance_id}/migrate")
    return begun


def engine_status(endpoint: str) -> engine_pb2.EngineStatusReply:
    with grpc.insecure_channel(endpoint) as channel:
        return engine_pb2_grpc.InferenceStub(channel).Status(engine_pb2.EngineStatusRequest(), timeout=5)


def engines_of(host: dict[str, Any]) -> list[host_pb2.EngineProcess]:
    with grpc.insecure_channel(host["host_address"]) as channel:
        stub = host_pb2_grpc.HostStub(channel)
        return list(stub.ListEngines(host_pb2.ListEnginesRequest(), timeout=5).engines)


def inventory_of(host: dict[str, Any]) -> store_pb2.InventoryReply:
    with grpc.insecure_channel(host["store_address"]) as channel:
        return store_pb2_grpc.StoreStub(channel).Inventory(store_pb2.InventoryRequest(), timeout=5)


class Victims:
    """Who can be killed, by the names of the failure table. Built before a migration."""

    NAMES = (
        "source engine",
        "destination engine",
        "source store",
        "destination store",
        "source agent",
        "destination agent",
        "control worker",
        "api",
        "temporal",
        "postgres",
    )
    _ROLES = {  # noqa: RUF012  constant
        "control worker": "serve control-worker",
        "api": "serve api",
        "temporal": "server start-dev",
    }
    _ON_HOST = {"store": "gpu_worker.store", "agent": "serve host-agent"}  # noqa: RUF012  constant

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._hosts = {row["host_id"]: row for row in platform.get("/admin/v1/hosts")["hosts"]}

    def pids(self, name: str, begun: dict[str, Any]) -> list[int]:
        """Empty when the process does not live now, such as an engine that has ended."""
        platform = self._platform
        if name == "postgres":
            pid = EmbeddedPostgres(platform.state_dir).pid
            return [] if pid is None else [pid]
        if name in self._ROLES:
            return self._below(platform.launcher_pid, self._ROLES[name])
        side, kind = name.split()
        host_id = begun[f"{side}_host_id"]
        if kind == "engine":
            wanted = begun[f"{side}_instance_id"]
            return [row.pid for row in engines_of(self._hosts[host_id]) if row.instance_id == wanted]
        supervisor = self._below(platform.launcher_pid, "gpu_worker.host")
        mine = [pid for pid in supervisor if f"hosts/{host_id}" in command_line(pid)]
        return [found for pid in mine for found in self._below(pid, self._ON_HOST[kind])]

    def _below(self, pid: int, words: str) -> list[int]:
        return [one for one in descendants(pid) if words in command_line(one)]


class AtRest:
    """What must be true once a migration is over, whatever died meanwhile."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        # Of the last look, for whoever must find out why it never came to rest. Any: whatever was looked at.
        self._seen: dict[str, Any] = {}

    def wait(self) -> None:
        """Raises: PlatformFailed naming the first thing that does not come to rest."""
        self._until(self._is_settled, "migrations and instances to be finished or undone")
        self._until(self._workflows_are_those_of_the_living, "workflows to end")
        self._until(self._hosts_hold_what_is_reserved, "hosts to hold what is reserved")
        self._until(self._stores_are_quiet, "stores to hold no more than they should")
        self._until(self._everybody_polls, "workers to poll")

    def wait_sessions_gone(self) -> None:
        def is_so() -> bool:
            return all(engine_status(row["endpoint"]).sessions == 0 for row in instances(self._platform))

        self._until(is_so, "sessions to be attached or forgotten", within_s=FORGOTTEN_WITHIN_S)

    def _until(self, is_so: Callable[[], bool], what: str, *, within_s: float = SETTLED_WITHIN_S) -> None:
        def patient() -> bool:
            try:
                return is_so()
            except (httpx.HTTPError, grpc.RpcError, psycopg.Error, RuntimeError, OSError):
                # Whoever was killed is on its way back.
                return False

        try:
            self._platform.wait_for(patient, what=what, deadline_s=within_s)
        except PlatformFailed as failure:
            raise AssertionError(f"waited {within_s:g} s for {what}: {self._seen}\n{failure}") from failure

    def _is_settled(self) -> bool:
        """Rows of the database, as SQL sees them."""
        with psycopg.connect(_sql_url(self._platform)) as connection:
            states = _column(connection, "SELECT state FROM instances WHERE is_live")
            orphans = _column(
                connection,
                "SELECT instance_id FROM reservations UNION ALL SELECT instance_id FROM promises "
                "EXCEPT SELECT instance_id FROM instances WHERE is_live",
            )
            held = _column(connection, "SELECT count(*) FROM reservations")
            needed = _column(connection, "SELECT coalesce(sum(gpu_count), 0) FROM instances WHERE is_live")
            moving = _column(connection, "SELECT migration_id FROM migrations WHERE state = 'running'")
        self._seen = {"states": states, "orphans": orphans, "moving": moving, "held": held, "needed": needed}
        # None may be left: a destination that died when all requests had ended, and the source with them.
        return set(states) <= {"ready"} and not orphans and not moving and held == needed

    def _workflows_are_those_of_the_living(self) -> bool:
        running = asyncio.run(_running_workflows(self._platform.record.temporal_address))
        live = sorted(f"instance/{row['instance_id']}" for row in instances(self._platform))
        ours = sorted(name for name in running if not name.startswith(("host/", "fleet-reconciler")))
        self._seen = {"workflows": ours, "live": live}
        return ours == live

    def _everybody_polls(self) -> bool:
        """Whoever was killed takes up work again: a migration asked for now need not fail for want of it."""
        hosts = [host["host_id"] for host in self._platform.get("/admin/v1/hosts")["hosts"]]
        queues = [naming.CONTROL_QUEUE, *map(naming.host_queue, hosts)]
        address = self._platform.record.temporal_address
        polling = {queue: asyncio.run(_polling_pids(address, queue)) for queue in queues}
        self._seen = {"polling": polling}
        return all(any(is_alive(pid) for pid in pids) for pids in polling.values())

    def _hosts_hold_what_is_reserved(self) -> bool:
        live = {(row["host_id"], row["instance_id"]) for row in instances(self._platform)}
        bound: set[tuple[str, str]] = set()
        for host in self._platform.get("/admin/v1/hosts")["hosts"]:
            rows = [row for row in engines_of(host) if row.instance_id]
            if any(row.state != "ready" for row in rows):
                return False
            bound |= {(host["host_id"], row.instance_id) for row in rows}
        statuses = [engine_status(row["endpoint"]) for row in instances(self._platform)]
        return bound == live and all((one.running, one.waiting) == (0, 0) for one in statuses)

    def _stores_are_quiet(self) -> bool:
        """No byte promised to a load, none in DRAM but the checkpoint's, no pin of an engine that is gone."""
        for host in self._platform.get("/admin/v1/hosts")["hosts"]:
            holds = inventory_of(host)
            known = sum(row.size_bytes for row in holds.checkpoints if row.in_dram)
            bound = sum(bool(row.instance_id) for row in engines_of(host))
            pins = sum(row.pins for row in holds.checkpoints)
            is_loading = any(row.loading for row in holds.checkpoints)
            is_more = holds.dram_used_bytes > 2 * known + (8 << 20)
            if holds.queued_bytes or is_loading or pins > bound or is_more:
                return False
        return True


def _sql_url(platform: Platform) -> str:
    return EmbeddedPostgres(platform.state_dir).start().replace("postgresql+psycopg", "postgresql")


# Any: a column of whatever type.
def _column(connection: psycopg.Connection[Any], query: str) -> list[Any]:
    return [row[0] for row in connection.execute(query)]


async def _polling_pids(address: str, queue: str) -> list[int]:
    """Processes that asked for activities of this queue lately; some of them may have ended since."""
    client = await Client.connect(address)
    request = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueue(name=queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    found = await client.workflow_service.describe_task_queue(request)
    return [int(poller.identity.partition("@")[0]) for poller in found.pollers]


async def _running_workflows(address: str) -> list[str]:
    client = await Client.connect(address)
    return [found.id async for found in client.list_workflows("ExecutionStatus = 'Running'")]


def heard_afterwards(stream: Stream) -> None:
    """Until it has ended or heard so many tokens more; then its client leaves. Raises: PlatformFailed."""
    wanted = len(stream.heard.tokens) + HEARD_AFTERWARDS
    if wanted < stream.asked.max_tokens:
        stream.wait_tokens(wanted)
        stream.hang_up()
    else:
        stream.result()


def is_beginning_of(heard: Heard, undisturbed: Heard) -> bool:
    """What was heard until the connection ended is what would have been heard."""
    return heard.tokens == undisturbed.tokens[: len(heard.tokens)]
