"""Consolidation carried out: a nearly idle host is emptied onto a fuller one, where a setting asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from api_stand import Stand, connected, stand, until
from fake_host import FakeHost, working_cluster
from fleets import DIGEST, running
from giving_way_scene import end
from workflow_world import world

from activities.consolidating import consolidate_fleet
from api.routing.route_table import LIVE
from firstlight.contracts import naming
from firstlight.contracts.hosts import ConsolidateReceipt, HostList, ReconcileInput
from firstlight.contracts.loads import EngineLoad
from firstlight.database import hosts_repository
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.migrations_repository import list_migrations
from firstlight.domain.names import HostId
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.rpc.channels import Channels


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path, temporal_address=temporal_server.address, hosts=0) as made:
        for host_id in ("host-a", "host-b"):
            await made.add_host(host_id, gpu_count=3)
        yield made


@pytest_asyncio.fixture
async def host(api: Stand, temporal_server: EmbeddedTemporal) -> AsyncIterator[FakeHost]:
    async with working_cluster(api, temporal_server.address, "host-a", "host-b") as fake:
        yield fake


async def holds(api: Stand, host_id: str, checkpoint_id: str) -> None:
    async with api.database.transaction() as session:
        await hosts_repository.set_placements(
            session,
            host_id=host_id,
            checkpoint_id=checkpoint_id,
            ssd=True,
            dram=None,
            size_bytes=1_000_000,
            manifest_digest=DIGEST,
        )


async def has_requests(database: Database, instance_id: str, requests: int) -> None:
    load = EngineLoad(instance_id=instance_id, requests=requests, tokens=50 * requests, idle_s=None)
    async with database.transaction() as session:
        await write_loads(session, [load])


async def test_a_nearly_idle_host_is_emptied(api: Stand, host: FakeHost) -> None:
    """host-b is full until one of its instances ends; what had to go to host-a then joins the others."""
    full = []
    for name in ("first", "second", "third"):
        await api.deploy(name)
        full.append(await running(api.database, name, excluded_hosts=frozenset({HostId("host-a")})))
    await api.deploy("lonely", keep_alive_s=600.0)
    lonely = (await api.http.post("/admin/v1/models/lonely/start")).json()
    assert lonely["host_id"] == "host-a"
    await holds(api, "host-b", "lonely@abcd1234")
    for start in full:
        await has_requests(api.database, start.instance_id, 2)
    await has_requests(api.database, lonely["instance_id"], 1)
    client = api.services.temporal
    async with Channels() as channels:
        # Nothing has room for it yet; then there is room, but it has more to do than the bound.
        assert await consolidate_fleet(api.database, client, channels, most_requests=1) == []
        await end(api.database, full[0])
        assert await consolidate_fleet(api.database, client, channels, most_requests=0) == []
        [told] = await consolidate_fleet(api.database, client, channels, most_requests=1)
        assert told == f"{lonely['instance_id']} moves from host-a to host-b"
        # Once is enough.
        assert await consolidate_fleet(api.database, client, channels, most_requests=1) == []
    await until(lambda: api.services.table.state_of(lonely["instance_id"]) not in LIVE, within_s=20)
    async with api.database.session() as session:
        [row] = await list_migrations(session)
    assert (row.state, row.source_host_id, row.destination_host_id) == ("completed", "host-a", "host-b")
    assert row.reason == "host-a is emptied: it runs 1 requests"


async def test_the_reconciler_does_so_only_where_it_is_asked_to(temporal_server: EmbeddedTemporal) -> None:
    client = await connected(temporal_server.address)
    async with world(client, hosts="") as here:
        for consolidates, calls in ((False, 0), (True, 1)):
            here.control.script.then("list_hosts", HostList([], consolidates=consolidates))
            here.control.script.then(
                "consolidate_fleet", *([ConsolidateReceipt(["i-1 moves"])] if consolidates else [])
            )
            handle = await client.start_workflow(
                naming.FLEET_RECONCILER,
                ReconcileInput(),
                id=f"reconcile-{here.run_id}-{consolidates}",
                task_queue=naming.CONTROL_QUEUE,
            )
            await handle.result()
            assert len(here.control.script.requests("consolidate_fleet")) == calls
        told = (await handle.query("__temporal_workflow_metadata")).current_details
        assert "i-1 moves" in told
