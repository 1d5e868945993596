"""Somebody needs a GPU that an idle instance of another model holds: it gives way, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from api_stand import Stand, stand, until
from fake_host import FakeHost, working_cluster

from firstlight.contracts.loads import EngineLoad
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.instances_repository import list_instances
from firstlight.database.starts_repository import list_starts
from firstlight.domain.lifecycle import InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal

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


async def idles(api: Stand, instance_id: str, *, idle_s: float = 30.0) -> None:
    """As its host's agent would write, and as it says itself when it is asked."""
    api.engines[instance_id].idle_s = idle_s
    async with api.database.transaction() as session:
        await write_loads(session, [EngineLoad(instance_id=instance_id, requests=0, tokens=0, idle_s=idle_s)])


async def test_an_idle_instance_is_ended_for_whoever_asks(api: Stand, host: FakeHost) -> None:
    await api.deploy("first", keep_alive_s=600.0)
    await api.deploy("second", keep_alive_s=600.0)
    await ask(api, "first")
    [first] = api.engines
    await idles(api, first)
    # Not after ten minutes, but now.
    async with asyncio.timeout(20):
        await ask(api, "second")
    assert host.stopped == [first]
    async with api.database.session() as session:
        [latest, _] = await list_starts(session)
        [ended] = await list_instances(session, states=[InstanceState.STOPPED])
    assert (latest.model, latest.candidates[0].victims[0].instance_id) == ("second", first)
    assert ended.end_reason is not None and "made room for second" in ended.end_reason
    decision = await api.http.get(f"/admin/v1/decisions/{latest.decision_id}")
    assert decision.json()["kind"] == "migrate"


async def test_one_that_turns_out_busy_is_waited_for(api: Stand, host: FakeHost) -> None:
    await api.deploy("first", keep_alive_s=600.0)
    await api.deploy("second", keep_alive_s=600.0)
    await ask(api, "first")
    [first] = api.engines
    await idles(api, first)
    engine = api.engines[first]
    engine.running = 1
    waiting = asyncio.create_task(ask(api, "second"))
    await until(lambda: api.services.table.lane("second").waiting)
    await asyncio.sleep(0)
    assert host.stopped == []
    engine.running = 0
    async with asyncio.timeout(20):
        await waiting
    assert host.stopped == [first]


@pytest.mark.parametrize("settings", [{"min_instances": 1}, {"priority": 3}])
async def test_one_that_is_needed_or_matters_more_stays(
    api: Stand, host: FakeHost, settings: dict[str, object]
) -> None:
    await api.deploy("first", keep_alive_s=600.0, **settings)
    await api.deploy("second")
    await ask(api, "first")
    await until(lambda: api.engines)
    [first] = api.engines
    await idles(api, first)
    answer = await api.http.post("/admin/v1/models/second/start", json={"wait": False})
    assert answer.status_code == 503 or answer.json()["state"] == "waiting", answer.text
    assert host.stopped == []
