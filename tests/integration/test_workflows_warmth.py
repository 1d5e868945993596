"""What the keep-alive policy and the look ahead decide, carried out by workflows under real Temporal."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from temporalio.client import Client
from workflow_world import World, eventually, world

from firstlight.contracts import naming
from firstlight.contracts.hosts import ReconcileInput, ReconcileResult
from firstlight.contracts.warmth import KeepAliveReceipt, LookAheadReceipt
from firstlight.domain.errors import NotFound
from firstlight.launcher.embedded.temporal import EmbeddedTemporal


@pytest_asyncio.fixture
async def here(temporal_server: EmbeddedTemporal) -> AsyncIterator[World]:
    async with world(await Client.connect(temporal_server.address)) as made:
        yield made


async def running_instance(here: World) -> str:
    plan = here.plan()
    await (await here.start(plan)).result()
    await eventually(lambda: watched_for(here))
    return plan.instance_id


def watched_for(here: World) -> list[float]:
    return [request.keep_alive_s for request in here.host().script.requests("watch_instance")]


async def test_an_instance_is_watched_for_as_long_as_the_policy_says(here: World) -> None:
    here.warmth.script.then("decide_keep_alive", KeepAliveReceipt(20.0, "histogram"))
    instance_id = await running_instance(here)
    assert watched_for(here) == [20.0]
    [asked] = here.warmth.script.requests("decide_keep_alive")
    assert (asked.instance_id, asked.epoch, asked.idle_s) == (instance_id, 7, 0.0)


async def test_an_idle_instance_goes_on_when_the_policy_has_come_to_want_it(here: World) -> None:
    here.warmth.script.then("decide_keep_alive", KeepAliveReceipt(20.0), KeepAliveReceipt(900.0))
    instance_id = await running_instance(here)
    here.host().endings.end(instance_id, "idle")
    await eventually(lambda: watched_for(here) == [20.0, 900.0])
    assert not here.host().script.requests("watch_instance")[1].ignore_idle
    assert here.control.script.requests("begin_drain") == []
    assert [asked.idle_s for asked in here.warmth.script.requests("decide_keep_alive")] == [0.0, 20.0]

    here.warmth.keep_alive_s = 900.0
    here.host().endings.end(instance_id, "idle")
    await here.client.get_workflow_handle(naming.instance_workflow_id(instance_id)).result()
    assert len(here.control.script.requests("begin_drain")) == 1


async def test_without_an_answer_of_the_policy_the_plans_time_holds(here: World) -> None:
    here.warmth.script.then("decide_keep_alive", NotFound("no such instance"), NotFound("nor now"))
    instance_id = await running_instance(here)
    assert watched_for(here) == [300.0]
    here.host().endings.end(instance_id, "idle")
    await here.client.get_workflow_handle(naming.instance_workflow_id(instance_id)).result()
    assert len(here.control.script.requests("begin_drain")) == 1


async def reconciled(here: World, name: str) -> tuple[ReconcileResult, str]:
    handle = await here.client.start_workflow(
        naming.FLEET_RECONCILER,
        ReconcileInput(),
        id=f"look-ahead-{here.run_id}-{name}",
        task_queue=naming.CONTROL_QUEUE,
        result_type=ReconcileResult,
    )
    result = await handle.result()
    attributes = (await handle.describe()).typed_search_attributes
    return result, attributes[naming.OUTCOME]


async def test_the_reconciler_looks_ahead_and_does_not_depend_on_it(here: World) -> None:
    here.warmth.script.then(
        "look_ahead", LookAheadReceipt(["qwen goes to dram of host-a ahead of need"]), NotFound("nothing")
    )
    assert await reconciled(here, "first") == (ReconcileResult(hosts=0), "clean")
    assert await reconciled(here, "second") == (ReconcileResult(hosts=0), "clean")
    assert len(here.warmth.script.requests("look_ahead")) == 2
