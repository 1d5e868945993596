"""InstanceLifecycle, HostLifecycle and FleetReconciler under real Temporal."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus
from workflow_world import World, eventually, world

from firstlight.contracts import naming
from firstlight.contracts.hosts import (
    EngineRow,
    EngineToStop,
    FailHostReceipt,
    HostList,
    HostReport,
    MendReceipt,
    ReconcileInput,
    ReconcileResult,
)
from firstlight.contracts.instances import BeginDrainReceipt, StopSignal
from firstlight.contracts.starting import announce_host, change_keep_alive, stop_instance
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from workflows import host_lifecycle, instance_lifecycle


@pytest_asyncio.fixture
async def client(temporal_server: EmbeddedTemporal) -> Client:
    return await Client.connect(temporal_server.address)


@pytest_asyncio.fixture
async def here(client: Client) -> AsyncIterator[World]:
    async with world(client) as made:
        yield made


async def running_instance(here: World) -> str:
    plan = here.plan()
    await (await here.start(plan)).result()
    await eventually(lambda: here.host().script.requests("watch_instance"))
    return plan.instance_id


async def end_of(here: World, instance_id: str) -> str:
    """Waits for the instance's workflow; how it says that it ended."""
    handle = here.client.get_workflow_handle(naming.instance_workflow_id(instance_id))
    await handle.result()
    return (await handle.describe()).typed_search_attributes[naming.OUTCOME]


async def test_an_idle_instance_scales_to_zero(here: World) -> None:
    instance_id = await running_instance(here)
    here.host().endings.end(instance_id, "idle")
    assert await end_of(here, instance_id) == "stopped"

    control = [name for name, _ in here.control.script.calls]
    assert control == ["record_start", "begin_drain", "finish_instance"]
    [drain] = here.control.script.requests("begin_drain")
    assert drain.respect_minimum
    [stop] = here.host().script.requests("stop_instance")
    assert (stop.instance_id, stop.drain_timeout_s) == (instance_id, 30.0)
    [finish] = here.control.script.requests("finish_instance")
    assert (finish.outcome, finish.failure_code) == ("stopped", "")


async def test_an_idle_instance_that_the_minimum_needs_stays(here: World) -> None:
    here.control.script.then("begin_drain", BeginDrainReceipt(draining=False, state="ready"))
    instance_id = await running_instance(here)
    here.host().endings.end(instance_id, "idle")
    await eventually(lambda: len(here.host().script.requests("watch_instance")) == 2)
    # Idle as it is, a plain watch would come back at once, for ever.
    assert here.host().script.requests("watch_instance")[1].ignore_idle
    assert here.host().script.requests("stop_instance") == []

    here.host().endings.end(instance_id, "elapsed")
    await eventually(lambda: len(here.host().script.requests("watch_instance")) == 3)
    assert not here.host().script.requests("watch_instance")[2].ignore_idle


async def test_an_asked_stop_drains_as_long_as_it_says(here: World) -> None:
    instance_id = await running_instance(here)
    assert await stop_instance(
        here.client,
        model="smollm2",
        instance_id=instance_id,
        request=StopSignal("model deleted", drain_timeout_s=5.0),
    )
    assert await end_of(here, instance_id) == "stopped"
    [stop] = here.host().script.requests("stop_instance")
    assert (stop.drain_timeout_s, stop.reason) == (5.0, "model deleted")
    assert not here.control.script.requests("begin_drain")[0].respect_minimum
    assert not await stop_instance(
        here.client, model="smollm2", instance_id=instance_id, request=StopSignal("again")
    )


async def test_a_new_keep_alive_time_reaches_the_watch(here: World) -> None:
    instance_id = await running_instance(here)
    await change_keep_alive(here.client, instance_id=instance_id, keep_alive_s=12.0)
    watches = here.host().script
    await eventually(lambda: len(watches.requests("watch_instance")) == 2)
    assert [request.keep_alive_s for request in watches.requests("watch_instance")] == [300.0, 12.0]


async def test_an_engine_that_ends_by_itself_is_a_failure(here: World) -> None:
    instance_id = await running_instance(here)
    here.host().endings.end(instance_id, "exited")
    assert await end_of(here, instance_id) == "failed"
    [finish] = here.control.script.requests("finish_instance")
    assert (finish.outcome, finish.failure_code) == ("failed", "engine_gone")
    # No request may reach it any more, so there is nothing to drain.
    assert here.control.script.requests("begin_drain") == []


async def test_a_host_that_is_lost_fails_what_it_ran_and_may_return(here: World) -> None:
    instance_id = await running_instance(here)
    host_id = here.host_id("a")
    here.started.append(naming.host_workflow_id(host_id))
    here.control.script.then(
        "fail_host", FailHostReceipt(marked=True, failed_instances=[instance_id, "never-ready"])
    )
    await announce_host(here.client, host_id=host_id, registration=1)
    await eventually(lambda: here.control.script.requests("watch_lease"))
    here.control.leases.end(1, "expired")
    assert await end_of(here, instance_id) == "stopped"
    [failed] = here.control.script.requests("fail_host")
    assert (failed.host_id, failed.registration) == (host_id, 1)

    await announce_host(here.client, host_id=host_id, registration=2)
    await eventually(lambda: len(here.control.script.requests("watch_lease")) == 2)
    assert [watch.registration for watch in here.control.script.requests("watch_lease")] == [1, 2]
    # Whatever the host still ran is compared with Postgres as soon as it is back.
    assert len(here.control.script.requests("mend_host")) == 2


async def test_a_newer_registration_is_watched_and_an_older_one_is_not(here: World) -> None:
    host_id = here.host_id("b")
    here.started.append(naming.host_workflow_id(host_id))
    await announce_host(here.client, host_id=host_id, registration=4)
    await eventually(lambda: here.control.script.requests("watch_lease"))
    await announce_host(here.client, host_id=host_id, registration=5)
    await announce_host(here.client, host_id=host_id, registration=3)
    here.control.leases.end(4, "superseded")
    await eventually(lambda: len(here.control.script.requests("watch_lease")) == 2)
    assert here.control.script.requests("watch_lease")[1].registration == 5
    assert here.control.script.requests("fail_host") == []


async def test_the_reconciler_mends_who_answers_and_names_who_does_not(here: World) -> None:
    here.control.script.then("list_hosts", HostList([here.host_id("a"), here.host_id("z")]))
    report = HostReport(here.host_id("a"), engines=[EngineRow("ghost", 3, "ready", "127.0.0.1:1")])
    here.host().script.then("report_inventory", report)
    here.control.script.then(
        "mend_host", MendReceipt(mended=["placement added"], orphans=[EngineToStop("ghost", 3)])
    )
    handle = await here.client.start_workflow(
        naming.FLEET_RECONCILER,
        ReconcileInput(),
        id=f"reconcile-{here.run_id}",
        task_queue=naming.CONTROL_QUEUE,
        result_type=ReconcileResult,
    )
    result = await handle.result()

    assert (result.hosts, result.unreachable) == (2, [here.host_id("z")])
    assert result.mended[0] == "placement added"
    assert "ended engine ghost" in result.mended[1]
    assert here.control.script.requests("mend_host")[0].report == report
    [stop] = here.host().script.requests("stop_instance")
    assert (stop.instance_id, stop.epoch) == ("ghost", 3)
    assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED


@pytest.mark.slow
async def test_an_instance_that_lives_long_renews_its_history(here: World) -> None:
    instance_id = await running_instance(here)
    handle = here.client.get_workflow_handle(naming.instance_workflow_id(instance_id))
    first_run = (await handle.describe()).run_id
    here.warmth.keep_alive_s = 77.0
    await change_keep_alive(here.client, instance_id=instance_id, keep_alive_s=77.0)
    for _ in range(instance_lifecycle.WATCHES_PER_RUN):
        here.host().endings.end(instance_id, "elapsed")
    watches = here.host().script
    await eventually(
        lambda: len(watches.requests("watch_instance")) > instance_lifecycle.WATCHES_PER_RUN, within_s=60
    )
    await eventually(lambda: here.host().endings.is_waiting(instance_id), within_s=60)

    assert (await handle.describe()).run_id != first_run
    # What was changed since the start outlives the renewal.
    assert watches.requests("watch_instance")[-1].keep_alive_s == 77.0
    assert await stop_instance(
        here.client, model="smollm2", instance_id=instance_id, request=StopSignal("enough")
    )
    assert await end_of(here, instance_id) == "stopped"


@pytest.mark.slow
async def test_a_host_that_lives_long_renews_its_history(here: World) -> None:
    host_id = here.host_id("a")
    here.started.append(naming.host_workflow_id(host_id))
    await announce_host(here.client, host_id=host_id, registration=6)
    handle = here.client.get_workflow_handle(naming.host_workflow_id(host_id))
    first_run = (await handle.describe()).run_id
    for _ in range(host_lifecycle.WATCHES_PER_RUN):
        here.control.leases.end(6, "elapsed")
    await eventually(lambda: here.control.leases.is_waiting(6), within_s=60)
    assert (await handle.describe()).run_id != first_run
    # The next loss is still noticed.
    here.control.leases.end(6, "expired")
    await eventually(lambda: here.control.script.requests("fail_host"))
