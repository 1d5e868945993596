"""Scenarios of policies' decisions: how long an instance is kept, what is brought nearer, what is emptied."""

from __future__ import annotations

from acting import instance, watched
from workflow_world import World

from firstlight.contracts import naming
from firstlight.contracts.hosts import ConsolidateReceipt, HostList, ReconcileInput
from firstlight.contracts.warmth import KeepAliveReceipt, LookAheadReceipt
from firstlight.domain.errors import NotFound


async def instance_kept_by_the_policy(here: World) -> list[str]:
    """Kept for another time than the plan's, for longer when it is idle, and then no longer."""
    decided = [KeepAliveReceipt(one, "histogram") for one in (20.0, 900.0, 900.0)]
    here.warmth.script.then("decide_keep_alive", *decided)
    workflow_id, instance_id = await instance(here)
    here.host().endings.end(instance_id, "idle")
    await watched(here, 2)
    here.host().endings.end(instance_id, "idle")
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def instance_without_an_answer_of_the_policy(here: World) -> list[str]:
    here.warmth.script.then("decide_keep_alive", NotFound("no such instance"), NotFound("nor now"))
    workflow_id, instance_id = await instance(here)
    here.host().endings.end(instance_id, "idle")
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def reconciler_that_looks_ahead_and_consolidates(here: World) -> list[str]:
    here.control.script.then("list_hosts", HostList([here.host_id("a")], consolidates=True))
    here.warmth.script.then("look_ahead", LookAheadReceipt(["qwen goes to dram of host-a ahead of need"]))
    here.control.script.then("consolidate_fleet", ConsolidateReceipt(["i-1 moves from host-a to host-b"]))
    return [await _reconciled(here)]


async def reconciler_whose_policies_fail(here: World) -> list[str]:
    here.control.script.then("list_hosts", HostList([here.host_id("a")], consolidates=True))
    here.warmth.script.then("look_ahead", NotFound("nothing"))
    here.control.script.then("consolidate_fleet", NotFound("nothing"))
    return [await _reconciled(here)]


async def _reconciled(here: World) -> str:
    workflow_id = f"reconcile-{here.run_id}"
    handle = await here.client.start_workflow(
        naming.FLEET_RECONCILER, ReconcileInput(), id=workflow_id, task_queue=naming.CONTROL_QUEUE
    )
    await handle.result()
    return workflow_id
