"""A whole release goes in while clients stream: tables first, then every process, one after the other."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from firstlight.database import migrations_repository
from firstlight.database.records import HostRecord, MigrationRecord
from firstlight.domain.errors import FirstlightError
from firstlight.domain.lifecycle import HostState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.launcher.machine_checks import free_port
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient
from tests.integration.conftest import execute
from tests.integration.live_cluster import LiveCluster, live_cluster
from tests.integration.rolling_clients import MODEL, PROMPTS, TOKENS, Answer, RollingClients, ask
from tests.platform_fixtures import tiny_source

HOSTS = ("host-a", "host-b")
DRAIN_S = 60.0
# What the tables of a next release may bring, by the rule of docs/operators/upgrading.md.
NEXT_RELEASE = (
    "ALTER TABLE instances ADD COLUMN colour text NOT NULL DEFAULT 'blue'",
    "CREATE TABLE colours (name text PRIMARY KEY)",
    "UPDATE alembic_version SET version_num = '9999_colours'",
)


@pytest_asyncio.fixture
async def cluster(
    database_url: str, temporal_server: EmbeddedTemporal, tmp_path: Path
) -> AsyncIterator[LiveCluster]:
    async with live_cluster(
        database_url=database_url, temporal_address=temporal_server.address, state_dir=tmp_path / "state"
    ) as running:
        running.env |= {"FIRSTLIGHT_DRAIN_ON_STOP_S": str(DRAIN_S)}
        try:
            yield running
        finally:
            # Both hosts at once have nowhere to drain to.
            for role in [one for one in running.processes if one.startswith("gpu-host")]:
                if running.processes[role].returncode is None:
                    await running.kill(role)


class Fleet:
    """Two APIs, two GPU hosts and a control worker, each started and stopped as one process."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.cluster = cluster
        self.ports = {f"api {number}": free_port("127.0.0.1") for number in (1, 2)}
        self.hosts = {f"gpu-host {host_id}": host_id for host_id in HOSTS}

    @property
    def api_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports.values()]

    async def start(self, role: str) -> None:
        if role in self.ports:
            await self.cluster.serve(role, FIRSTLIGHT_API_PORT=str(self.ports[role]))
        elif role in self.hosts:
            await self.cluster.serve(role, FIRSTLIGHT_HOST_IDS=self.hosts[role])
        else:
            await self.cluster.serve(role)

    async def until_ready(self, role: str) -> None:
        async with asyncio.timeout(120):
            while not await self._is_ready(role):
                assert self.cluster.processes[role].returncode is None, f"{role} ended"
                await asyncio.sleep(0.1)

    async def _is_ready(self, role: str) -> bool:
        if role in self.hosts:
            hosts = {host.host_id: host for host in await self.cluster.hosts()}
            host = hosts.get(self.hosts[role])
            return host is not None and host.state is HostState.READY and await _has_spare(host)
        if role not in self.ports:
            return True
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                answer = await http.get(f"http://127.0.0.1:{self.ports[role]}/readyz")
            except httpx.TransportError:
                return False
        return answer.is_success

    async def restart(self, role: str) -> float:
        """Seconds that the old process took to end by itself, after SIGTERM."""
        old = self.cluster.processes[role]
        began_s = time.monotonic()
        old.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DRAIN_S + 30):
            assert await old.wait() == 0, role
        took_s = time.monotonic() - began_s
        await self.start(role)
        await self.until_ready(role)
        return took_s


@pytest_asyncio.fixture
async def fleet(cluster: LiveCluster, tmp_path: Path) -> Fleet:
    fleet = Fleet(cluster)
    roles = ("control-worker", *fleet.hosts, *fleet.ports)
    for role in roles:
        await fleet.start(role)
    for role in roles:
        await fleet.until_ready(role)
    source = tiny_source(tmp_path / MODEL, context=2048).as_uri()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        deployed = await http.post(
            f"{fleet.api_urls[0]}/admin/v1/models",
            json={"name": MODEL, "source": source, "keep_alive_s": 600},
        )
    assert deployed.is_success, deployed.text
    return fleet


async def _has_spare(host: HostRecord) -> bool:
    """Whether streams can move there at once: before it, those that are to leave the next host end first."""
    async with Channels() as channels:
        try:
            engines = (await HostClient(channels, host.host_address).list_engines()).engines
        except FirstlightError:
            # Its address is that of the process before it.
            return False
    return any(one.state == "spare" for one in engines)


async def until_answered(clients: RollingClients, more: int) -> None:
    """Until clients have begun and got `more` answers from now on: the fleet serves as it stands."""
    enough = clients.answered.value + more
    async with asyncio.timeout(120):
        while clients.answered.value < enough:
            assert clients.are_well()
            await asyncio.sleep(0.05)


async def moves(fleet: Fleet) -> list[MigrationRecord]:
    async with fleet.cluster.database.session() as session:
        return await migrations_repository.list_migrations(session, model=MODEL, limit=100)


async def host_of_streams(fleet: Fleet) -> str:
    """The role of the GPU host that runs the model."""
    async with httpx.AsyncClient(trust_env=False) as http:
        found = (await http.get(f"{fleet.api_urls[0]}/admin/v1/instances")).json()["instances"]
    [host_id] = {one["host_id"] for one in found if one["state"] == "ready"}
    return next(role for role, name in fleet.hosts.items() if name == host_id)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_an_upgrade_of_every_process_fails_no_request(fleet: Fleet, database_url: str) -> None:
    undisturbed = {
        prompt: await asyncio.to_thread(ask, url, prompt)
        for prompt, url in zip(PROMPTS, fleet.api_urls * 2, strict=False)
    }
    with RollingClients(fleet.api_urls) as clients:
        await until_answered(clients, 1)
        for statement in NEXT_RELEASE:
            await asyncio.to_thread(
                execute, database_url.replace("postgresql+psycopg", "postgresql"), statement
            )
        await fleet.restart("control-worker")
        busy = await host_of_streams(fleet)
        for role in (busy, *(other for other in fleet.hosts if other != busy)):
            await until_answered(clients, 1)
            # It waits for streams that move, not for its time to run out.
            assert await fleet.restart(role) < DRAIN_S
        for role in fleet.ports:
            await until_answered(clients, 1)
            await fleet.restart(role)
        await until_answered(clients, len(PROMPTS))
    assert {prompt: set(answers) for prompt, answers in clients.answers.items()} == {
        prompt: {answer} for prompt, answer in undisturbed.items()
    }
    assert set(undisturbed.values()) == {
        Answer(answer.text, "length", TOKENS) for answer in undisturbed.values()
    }
    # Both hosts were emptied of streams that ran, and both take work again.
    moved = [(one.source_host_id, one.state) for one in await moves(fleet) if one.requests_moved]
    assert set(moved) == {(host_id, "completed") for host_id in HOSTS}, moved
    assert {host.state for host in await fleet.cluster.hosts()} == {HostState.READY}
