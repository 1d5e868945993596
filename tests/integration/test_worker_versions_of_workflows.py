"""Our own workflows under worker versioning: what runs goes on with the promoted code, whoever began it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest_asyncio
from scripted_activities import ScriptedControl, ScriptedHost
from scripted_warmth import ScriptedWarmth
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from workflow_world import World, eventually

from firstlight.contracts import naming
from firstlight.contracts.starting import announce_host
from firstlight.contracts.starts import BringUpInput, BringUpReceipt, PhaseSeconds, StartPlan
from firstlight.launcher.control_worker import worker_of
from firstlight.launcher.embedded.temporal_command import find_program
from firstlight.launcher.host_agent import host_worker
from firstlight.launcher.temporal_client import connect, ensure_search_attributes
from firstlight.launcher.worker_versions import deployment_config, promote, ramp
from firstlight.settings import read_settings

_numbers = itertools.count(1)


@pytest_asyncio.fixture
async def client() -> AsyncIterator[Client]:
    """Of a server of this test's own: which version is current is one fact of a whole server."""
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=find_program()) as server:
        address = server.client.service_client.config.target_host
        opened = await connect(read_settings(temporal_address=address))
        await ensure_search_attributes(opened)
        yield opened


@pytest_asyncio.fixture
async def here(client: Client) -> AsyncIterator[World]:
    """One GPU host, whose worker knows of no version; control workers come with each test."""
    run_id = f"versions-{next(_numbers)}"
    host = ScriptedHost(f"host-a-{run_id}")
    async with host_worker(client, host.host_id, host):
        yield World(client, ScriptedControl(), {host.host_id: host}, run_id)


@asynccontextmanager
async def build(here: World, build_id: str | None) -> AsyncIterator[ScriptedControl]:
    """A control worker of this build, and what it was asked for; None: one without versions."""
    control = ScriptedControl()
    versions = deployment_config(read_settings(worker_build_id=build_id))
    async with worker_of(here.client, control, ScriptedWarmth(), versions=versions):
        yield control


def asked_of(control: ScriptedControl) -> list[str]:
    return [name for name, _ in control.script.calls]


async def build_of(here: World, workflow_id: str) -> str:
    described = await here.client.get_workflow_handle(workflow_id).describe()
    info = described.raw_description.workflow_execution_info
    return info.versioning_info.deployment_version.build_id


async def running(here: World, name: str) -> StartPlan:
    """An instance that is up and watched."""
    plan = here.plan(instance=f"ins-{name}")
    before = len(here.host().script.requests("watch_instance"))
    await (await here.start(plan)).result()
    await eventually(lambda: len(here.host().script.requests("watch_instance")) > before)
    return plan


async def idle(here: World, plan: StartPlan) -> str:
    """Its host finds it idle; the id of its workflow, which has ended by then."""
    here.host().endings.end(plan.instance_id, "idle")
    workflow_id = naming.instance_workflow_id(plan.instance_id)
    await here.client.get_workflow_handle(workflow_id).result()
    return workflow_id


async def test_starts_and_instances_follow_the_promoted_build_there_and_back(here: World) -> None:
    let_go = asyncio.Event()

    async def held(request: BringUpInput) -> BringUpReceipt:
        await let_go.wait()
        phases = PhaseSeconds(load_s=0.3, attach_s=0.1, control_s=0.0, total_s=0.4, tier="ssd")
        return BringUpReceipt(endpoint="127.0.0.1:4000", phases=phases)

    async with build(here, "1.0") as old:
        await promote(here.client, "1.0", within_s=30)
        early, back = await running(here, "early"), await running(here, "back")
        here.host().script.then("bring_up", held)
        half_way = await here.start(here.plan(instance="ins-half-way"))
        await eventually(lambda: len(here.host().script.requests("bring_up")) == 3)
        async with build(here, "2.0") as new:
            await ramp(here.client, "2.0", percent=0, within_s=30)
            await running(here, "beside")
            assert asked_of(new) == [], "it polls, and gets nothing"
            await promote(here.client, "2.0", within_s=30)
            before = asked_of(old)
            # A start in the midst of its loading, a watched instance, and one that begins now.
            let_go.set()
            await half_way.result()
            ended = await idle(here, early)
            late = await running(here, "late")
            assert asked_of(old) == before, "it has let everything go"
            assert asked_of(new) == ["record_start", "begin_drain", "finish_instance", "record_start"]
            for workflow_id in (half_way.id, ended, naming.instance_workflow_id(late.instance_id)):
                assert await build_of(here, workflow_id) == "2.0", workflow_id

            await promote(here.client, "1.0", within_s=30)
            assert await build_of(here, await idle(here, back)) == "1.0"
            assert await build_of(here, await idle(here, late)) == "1.0"
        assert asked_of(old) == [*before, *("begin_drain", "finish_instance") * 2]


async def test_what_began_without_versions_goes_on_with_the_first_build_and_then_alone(here: World) -> None:
    host_id = here.host_id("a")
    async with build(here, None) as unversioned:
        plan = await running(here, "early")
        await announce_host(here.client, host_id=host_id, registration=1)
        await eventually(lambda: unversioned.leases.is_waiting(1))
        async with build(here, "1.0") as first:
            await promote(here.client, "1.0", within_s=30)
            before = asked_of(unversioned)
            await idle(here, plan)
            assert asked_of(unversioned) == before
            assert asked_of(first) == ["begin_drain", "finish_instance"]
    # Watches of leases stayed with whom they were: when that one ends, its successor takes them over.
    async with build(here, "1.0") as first:
        await eventually(lambda: first.leases.is_waiting(1), within_s=30)
        async with build(here, "2.0") as second:
            await promote(here.client, "2.0", within_s=30)
            first.leases.end(1, "expired")
            await eventually(lambda: "fail_host" in asked_of(second))
            await announce_host(here.client, host_id=host_id, registration=2)
            await eventually(lambda: second.leases.is_waiting(2))
        assert "fail_host" not in asked_of(first)
