"""Somebody needs a GPU that an idle instance of another model holds: it gives way, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from api_stand import Stand, connected, stand, until
from fake_host import FakeHost, working_cluster
from held_host import HeldHost
from sqlalchemy import update

from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.naming import instance_workflow_id
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.instances_repository import list_instances
from firstlight.database.starts_repository import list_starts
from firstlight.database.tables import HostRow
from firstlight.domain.lifecycle import InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.rpc.host_pb2_grpc import add_HostServicer_to_server
from firstlight.rpc.server import bind, new_server

HELLO = [{"role": "user", "content": "Hello!"}]


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal) -> AsyncIterator[Stand]:
    """One host with one GPU."""
    address = temporal_server.address
    async with stand(database, tmp_path, temporal_address=address, start_timeout_s=30, hosts=1) as made:
        yield made


@pytest_asyncio.fixture
async def host(api: Stand, temporal_server: EmbeddedTemporal) -> AsyncIterator[FakeHost]:
    async with working_cluster(api, temporal_server.address, "host-a") as fake:
        yield fake


async def ask(api: Stand, model: str) -> str:
    answer = await api.client.chat.completions.create(
        model=model,
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=4,
    )
    return str(answer.choices[0].message.content)


@asynccontextmanager
async def idling(api: Stand) -> AsyncIterator[str]:
    """The one instance there is has long been idle, as it says itself and as its host's agent writes."""
    [instance_id] = api.engines
    api.engines[instance_id].idle_s = 30.0
    load = EngineLoad(instance_id=instance_id, requests=0, tokens=0, idle_s=30.0)

    async def write() -> None:
        async with api.database.transaction() as session:
            await write_loads(session, [load])

    async def keep() -> None:
        while True:
            await asyncio.sleep(1.0)
            await write()

    await write()
    agent = asyncio.create_task(keep())
    try:
        yield instance_id
    finally:
        agent.cancel()
        await asyncio.gather(agent, return_exceptions=True)


async def test_an_idle_instance_is_ended_for_whoever_asks(api: Stand, host: FakeHost) -> None:
    await api.deploy("first", keep_alive_s=600.0)
    await api.deploy("second", keep_alive_s=600.0)
    await ask(api, "first")
    async with idling(api) as first:
        # Not after ten minutes, but now.
        await ask(api, "second")
    assert host.stopped == [first]
    async with api.database.session() as session:
        latest = (await list_starts(session))[0]
        [ended] = await list_instances(session, states=[InstanceState.STOPPED])
    assert latest.model == "second"
    assert first in {victim.instance_id for one in latest.candidates for victim in one.victims}
    assert ended.end_reason is not None and "made room for second" in ended.end_reason
    decision = await api.http.get(f"/admin/v1/decisions/{latest.decision_id}")
    assert decision.json()["kind"] == "migrate"


async def test_its_gpu_is_free_as_soon_as_its_engine_has_ended(api: Stand, host: FakeHost) -> None:
    """The instance's own workflow finds that out in its own time."""
    await api.deploy("first", keep_alive_s=600.0)
    await api.deploy("second", keep_alive_s=600.0)
    await ask(api, "first")
    host.end_gate.clear()
    held, server = HeldHost(), new_server()
    add_HostServicer_to_server(held, server)
    address = bind(server, bind_address="127.0.0.1", port=0)
    await server.start()
    async with api.database.transaction() as session:
        await session.execute(update(HostRow).values(host_address=address))
    async with idling(api) as first:
        await ask(api, "second")
    assert held.stopped == [first]
    host.end_gate.set()
    workflow = (await connected(api.services.settings.temporal_address)).get_workflow_handle(
        instance_workflow_id(first)
    )
    await workflow.result()
    async with api.database.session() as session:
        [ended] = await list_instances(session, states=[InstanceState.STOPPED, InstanceState.FAILED])
    assert (ended.instance_id, ended.state) == (first, InstanceState.STOPPED)
    await server.stop(grace=0)


async def test_one_that_gets_busy_as_it_is_to_end_costs_nobody_an_answer(api: Stand, host: FakeHost) -> None:
    """Idle when the plan was made, busy when its route was taken: it serves on, and who waits waits on."""
    await api.deploy("first", keep_alive_s=600.0)
    await api.deploy("second", keep_alive_s=600.0)
    await ask(api, "first")
    async with idling(api) as first:
        engine = api.engines[first]
        engine.busy_from_look = 2
        waiting = asyncio.create_task(ask(api, "second"))
        await until(lambda: engine.looks >= 3, within_s=20)
        assert first not in host.stopped and not waiting.done()
        engine.busy_from_look = None
        await waiting
        assert first in host.stopped


@pytest.mark.parametrize("settings", [{"min_instances": 1}, {"priority": 3}])
async def test_one_that_is_needed_or_matters_more_stays(
    api: Stand, host: FakeHost, settings: dict[str, object]
) -> None:
    await api.deploy("first", keep_alive_s=600.0, **settings)
    await api.deploy("second")
    await ask(api, "first")
    async with idling(api):
        answer = await api.http.post("/admin/v1/models/second/start", json={"wait": False})
        assert answer.status_code == 503 or answer.json()["state"] == "waiting", answer.text
    assert host.stopped == []
