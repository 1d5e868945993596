"""Record the histories that replay tests keep: real workflows under real Temporal, scripted activities.

    python tests/replay/record.py [NAME …]

Writes tests/replay/histories/<release>/<name>.json for every scenario (or those named). The release is
pyproject.toml's, in the making or made. Older histories stay, because runs of that code may still be open:
those of a release in the making move to <release>.dev<n> when its workflows change, others are left alone.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import tomllib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from temporalio.client import Client

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "integration"))

from acting import ended, for_ever, instance, watched  # noqa: E402
from making_room import (  # noqa: E402
    cold_start_in_place_of_a_busy_instance,
    cold_start_in_place_of_an_idle_instance,
    cold_start_in_place_of_one_that_stays,
    cold_start_that_calls_a_migration_off,
    cold_start_that_joins_a_migration,
)
from migration_scene import Scene  # noqa: E402
from warmth import (  # noqa: E402
    instance_kept_by_the_policy,
    instance_without_an_answer_of_the_policy,
    reconciler_that_looks_ahead_and_consolidates,
    reconciler_whose_policies_fail,
)
from workflow_world import World, eventually, world  # noqa: E402

from firstlight.contracts import naming  # noqa: E402
from firstlight.contracts.draining import DrainInput, MoveOffReceipt  # noqa: E402
from firstlight.contracts.hosts import (  # noqa: E402
    EngineToStop,
    FailHostReceipt,
    HostList,
    MendReceipt,
    ReconcileInput,
)
from firstlight.contracts.instances import BeginDrainReceipt, StopSignal  # noqa: E402
from firstlight.contracts.migrations import MoveReceipt  # noqa: E402
from firstlight.contracts.starting import (  # noqa: E402
    LOADING,
    announce_host,
    cancel_start,
    change_keep_alive,
    start_drain,
    stop_instance,
)
from firstlight.contracts.starts import ReplanReceipt  # noqa: E402
from firstlight.domain.errors import AttachFailed, ChecksumMismatch, DiskFull, EngineGone  # noqa: E402
from firstlight.launcher.embedded.temporal import EmbeddedTemporal  # noqa: E402

RELEASE = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]["version"]
# Takes a world, returns the ids of the workflows whose histories tell the scenario.
Scenario = Callable[[World], Awaitable[list[str]]]


async def cold_start_from_ssd(here: World) -> list[str]:
    handle = await here.start(here.plan())
    await handle.result()
    return [handle.id]


async def cold_start_with_download(here: World) -> list[str]:
    plan = here.plan(tier="remote")
    handle = await here.start(plan)
    await handle.result()
    return [handle.id, naming.download_id(plan.checkpoint.checkpoint_id, plan.host_id)]


async def cold_start_beside_a_failing_download(here: World) -> list[str]:
    """bring_up finds no room while bytes come; the download makes some, and the start goes on from SSD."""
    here.host().script.then("bring_up", DiskFull("no room for a copy"))
    plan = here.plan(tier="remote")
    handle = await here.start(plan)
    await handle.result()
    return [handle.id, naming.download_id(plan.checkpoint.checkpoint_id, plan.host_id)]


async def cold_start_with_retry_and_replan(here: World) -> list[str]:
    here.host("a").script.then("bring_up", EngineGone("store restarts"), AttachFailed("bytes refused"))
    here.control.script.then("replan_start", ReplanReceipt(plan=replace(here.plan("b"), epoch=8)))
    handle = await here.start(here.plan())
    await handle.result()
    return [handle.id]


async def cold_start_on_a_dead_host(here: World) -> list[str]:
    here.control.script.then("replan_start", ReplanReceipt(plan=replace(here.plan("b"), epoch=8)))
    handle = await here.start(here.plan("z"))
    await handle.result()
    return [handle.id]


async def cold_start_of_a_corrupt_copy(here: World) -> list[str]:
    here.host().script.then("bring_up", ChecksumMismatch("chunk 3"))
    handle = await here.start(here.plan())
    await handle.result()
    return [handle.id]


async def cold_start_that_fails(here: World) -> list[str]:
    here.host().script.then("bring_up", AttachFailed("bytes refused"))
    handle = await here.start(here.plan())
    await ended(handle.result())
    return [handle.id]


async def cold_start_cancelled(here: World) -> list[str]:
    here.host().script.then("bring_up", for_ever)
    plan = here.plan()
    handle = await here.start(plan)
    await eventually(lambda: here.host().script.requests("bring_up"))
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    await ended(handle.result())
    return [handle.id]


async def cold_start_called_off_after_its_download(here: World) -> list[str]:
    here.host().script.then("bring_up", for_ever)
    plan = here.plan(tier="remote")
    handle = await here.start(plan)
    await here.entered(handle, LOADING)
    await eventually(lambda: here.host().script.requests("bring_up"))
    await cancel_start(here.client, model=plan.model, instance_id=plan.instance_id)
    await ended(handle.result())
    return [handle.id]


async def instance_idle(here: World) -> list[str]:
    """Idle and needed first, idle and not needed then."""
    here.control.script.then("begin_drain", BeginDrainReceipt(draining=False, state="ready"))
    workflow_id, instance_id = await instance(here)
    for watches, how in ((1, "idle"), (2, "elapsed"), (3, "idle")):
        await watched(here, watches)
        here.host().endings.end(instance_id, how)
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def instance_with_a_new_keep_alive(here: World) -> list[str]:
    workflow_id, instance_id = await instance(here)
    here.warmth.keep_alive_s = 12.0
    await change_keep_alive(here.client, instance_id=instance_id, keep_alive_s=12.0)
    await watched(here, 2)
    here.host().endings.end(instance_id, "idle")
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def instance_exited(here: World) -> list[str]:
    workflow_id, instance_id = await instance(here)
    here.host().endings.end(instance_id, "exited")
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def instance_stopped(here: World) -> list[str]:
    workflow_id, instance_id = await instance(here)
    await stop_instance(
        here.client, model="smollm2", instance_id=instance_id, request=StopSignal("model deleted", 5.0)
    )
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def host_lost_and_returned(here: World) -> list[str]:
    host_id = here.host_id("a")
    here.control.script.then("fail_host", FailHostReceipt(marked=True, failed_instances=["never-ready"]))
    await announce_host(here.client, host_id=host_id, registration=1)
    await eventually(lambda: here.control.script.requests("watch_lease"))
    here.control.leases.end(1, "expired")
    await eventually(lambda: here.control.script.requests("fail_host"))
    await announce_host(here.client, host_id=host_id, registration=2)
    await eventually(lambda: len(here.control.script.requests("watch_lease")) == 2)
    here.started.append(naming.host_workflow_id(host_id))
    return [naming.host_workflow_id(host_id)]


async def reconciler(here: World) -> list[str]:
    here.control.script.then("list_hosts", HostList([here.host_id("a"), here.host_id("z")]))
    here.control.script.then(
        "mend_host", MendReceipt(mended=["placement added"], orphans=[EngineToStop("ghost", 3)])
    )
    workflow_id = f"reconcile-{here.run_id}"
    handle = await here.client.start_workflow(
        naming.FLEET_RECONCILER, ReconcileInput(), id=workflow_id, task_queue=naming.CONTROL_QUEUE
    )
    await handle.result()
    return [workflow_id]


async def migration_completed(here: World) -> list[str]:
    return [await _migrated(here)]


async def migration_whose_destination_fails(here: World) -> list[str]:
    here.host("b").script.then("bring_up", AttachFailed("bytes refused"))
    return [await _migrated(here)]


async def migration_whose_requests_stay(here: World) -> list[str]:
    here.host("a").script.then("move_requests", MoveReceipt(failed=2, error="the destination died"))
    return [await _migrated(here)]


async def host_drained(here: World) -> list[str]:
    stuck = MoveOffReceipt(left=2, begun=1, moving=1, stuck=["i-2: no host has room"])
    here.control.script.then("move_off", stuck, MoveOffReceipt(left=0))
    await start_drain(here.client, DrainInput(here.host_id("a")))
    workflow_id = naming.drain_workflow_id(here.host_id("a"))
    await here.client.get_workflow_handle(workflow_id).result()
    return [workflow_id]


async def _migrated(here: World) -> str:
    scene = Scene(here)
    await scene.run_source()
    workflow_id = await scene.begin()
    await ended(here.client.get_workflow_handle(workflow_id).result())
    return workflow_id


SCENARIOS: tuple[Scenario, ...] = (
    cold_start_from_ssd,
    cold_start_with_download,
    cold_start_beside_a_failing_download,
    cold_start_with_retry_and_replan,
    cold_start_on_a_dead_host,
    cold_start_of_a_corrupt_copy,
    cold_start_that_fails,
    cold_start_cancelled,
    cold_start_called_off_after_its_download,
    cold_start_in_place_of_an_idle_instance,
    cold_start_in_place_of_one_that_stays,
    cold_start_in_place_of_a_busy_instance,
    cold_start_that_joins_a_migration,
    cold_start_that_calls_a_migration_off,
    instance_idle,
    instance_kept_by_the_policy,
    instance_without_an_answer_of_the_policy,
    instance_with_a_new_keep_alive,
    instance_exited,
    instance_stopped,
    host_lost_and_returned,
    reconciler,
    reconciler_that_looks_ahead_and_consolidates,
    reconciler_whose_policies_fail,
    migration_completed,
    migration_whose_destination_fails,
    migration_whose_requests_stay,
    host_drained,
)


async def record(names: set[str]) -> None:
    folder = HERE / "histories" / RELEASE
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state_dir:
        server = EmbeddedTemporal(Path(state_dir), 0, 0)
        client = await Client.connect(await server.start())
        try:
            for scenario in SCENARIOS:
                if not names or scenario.__name__ in names:
                    await _record_one(client, scenario, folder)
        finally:
            await server.stop()


async def _record_one(client: Client, scenario: Scenario, folder: Path) -> None:
    async with world(client) as here:
        for number, workflow_id in enumerate(await scenario(here)):
            history = await client.get_workflow_handle(workflow_id).fetch_history()
            name = scenario.__name__ + (f"_{number}" if number else "")
            kept = {"workflow_id": workflow_id, "history": history.to_json_dict()}
            (folder / f"{name}.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
            print(f"{name}: {len(history.events)} events")


if __name__ == "__main__":
    asyncio.run(record(set(sys.argv[1:])))
