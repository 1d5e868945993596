"""The control loop whole: real processes of every role, from a decision to an engine that serves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.host import GpuHost
from firstlight.contracts.instances import StopInstanceInput, StopSignal
from firstlight.contracts.naming import cold_start_id, instance_workflow_id
from firstlight.contracts.starting import stop_instance
from firstlight.contracts.starts import AbandonInput, BringUpInput, ColdStartResult, DownloadInput, StartPlan
from firstlight.database.keys_repository import list_audit
from firstlight.database.starts_repository import abandon_start, list_starts
from firstlight.domain.lifecycle import InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, InferenceClient, StoreClient
from firstlight.rpc.store_pb2 import StoredCheckpoint
from tests.integration.conftest import fresh_database
from tests.integration.live_cluster import LiveCluster, live_cluster, until
from tests.integration.store_damage import flip_a_byte
from tests.integration.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow
ENDED = (InstanceState.STOPPED, InstanceState.FAILED)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("source"), "llama")


@pytest_asyncio.fixture(scope="module")
async def cluster(
    migrated_template: str, temporal_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[LiveCluster]:
    """One host with two engine slots, and a control worker."""
    state_dir = tmp_path_factory.mktemp("state")
    with fresh_database(migrated_template) as url:
        async with live_cluster(
            database_url=url, temporal_address=temporal_server.address, state_dir=state_dir, lease_s=20.0
        ) as live:
            await live.serve("gpu-host", FIRSTLIGHT_HOST_IDS="host-e2e")
            await live.serve("control-worker")
            await live.until_hosts(1)
            yield live


async def stop(cluster: LiveCluster, instance_id: str) -> None:
    request = StopSignal("test over", 1.0)
    model = (await cluster.instance(instance_id)).model
    assert await stop_instance(cluster.client, model=model, instance_id=instance_id, request=request)
    await cluster.until_state(instance_id, *ENDED, within_s=15)


async def test_from_a_decision_to_an_engine_and_back_to_nothing(cluster: LiveCluster, source: Path) -> None:
    await cluster.add_model("first", source)
    cold = await cluster.start("first")
    assert cold.estimate.tier == "remote"
    ready = await cluster.until_state(cold.instance_id, InstanceState.READY, within_s=60)
    async with Channels() as channels:
        assert ready.endpoint is not None
        status = await InferenceClient(channels, ready.endpoint).status()
    assert (status.instance_id, status.epoch, status.state) == (cold.instance_id, cold.epoch, "ready")
    await cluster.client.get_workflow_handle(cold_start_id("first", cold.instance_id)).result()
    async with cluster.database.session() as session:
        [seen] = await list_starts(session, model="first")
    assert seen.actual is not None and seen.tier == "remote"

    await stop(cluster, cold.instance_id)
    [host] = await cluster.hosts()
    assert all(gpu.instance_id is None for gpu in host.gpus)

    warm = await cluster.start("first")
    assert warm.estimate.tier in ("ssd", "dram")
    await cluster.until_state(warm.instance_id, InstanceState.READY, within_s=15)
    await stop(cluster, warm.instance_id)


async def test_an_idle_instance_gives_its_gpu_back(cluster: LiveCluster, source: Path) -> None:
    await cluster.add_model("idle", source, keep_alive_s=1.0)
    plan = await cluster.start("idle")
    ended = await cluster.until_state(plan.instance_id, *ENDED, within_s=60)
    assert ended.state is InstanceState.STOPPED


async def test_an_engine_that_is_killed_is_noticed(cluster: LiveCluster, source: Path) -> None:
    await cluster.add_model("killed", source)
    plan = await cluster.start("killed")
    await cluster.until_state(plan.instance_id, InstanceState.READY, within_s=60)
    await cluster.client.get_workflow_handle(cold_start_id("killed", plan.instance_id)).result()
    [host] = await cluster.hosts()
    async with Channels() as channels:
        engines = (await HostClient(channels, host.host_address).list_engines()).engines
    [pid] = [engine.pid for engine in engines if engine.instance_id == plan.instance_id]
    os.kill(pid, signal.SIGKILL)
    ended = await cluster.until_state(plan.instance_id, *ENDED, within_s=20)
    assert (ended.state, ended.failure_code) == (InstanceState.FAILED, "engine_gone")


async def test_a_byte_that_flipped_on_the_ssd_is_fetched_anew(cluster: LiveCluster, source: Path) -> None:
    """Nobody has to do anything: the copy is condemned, downloaded again, and the start succeeds."""
    await cluster.add_model("flipped", source)
    first = await cluster.start("flipped")
    await result_of(cluster, "flipped", first)
    name = first.checkpoint.checkpoint_id
    [path] = await until_there(cluster, name)
    await stop(cluster, first.instance_id)
    [host] = await cluster.hosts()
    async with Channels() as channels:
        store = StoreClient(channels, host.store_address)
        async with asyncio.timeout(10):
            while (await row_of(store, name)).pins:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(0.02)
        await store.remove(name, only_dram=True)
        intact = path.read_bytes()
        flip_a_byte(path, at=-5000)
        second = await cluster.start("flipped")
        assert second.estimate.tier != "remote"
        receipt = await result_of(cluster, "flipped", second)
        assert receipt.plans_tried == 1
        ready = await cluster.until_state(second.instance_id, InstanceState.READY, within_s=1)
        assert ready.endpoint is not None
        assert (await InferenceClient(channels, ready.endpoint).status()).state == "ready"
    assert path.read_bytes() == intact
    async with cluster.database.session() as session:
        [event] = await list_audit(session, subject=f"checkpoint/{name}")
    assert (event.act, event.actor) == ("checkpoint quarantined", f"host/{host.host_id}")
    assert event.detail["code"] == "checksum_mismatch"
    await stop(cluster, second.instance_id)


async def result_of(cluster: LiveCluster, model: str, plan: StartPlan) -> ColdStartResult:
    handle = cluster.client.get_workflow_handle(
        cold_start_id(model, plan.instance_id), result_type=ColdStartResult
    )
    async with asyncio.timeout(60):
        result: ColdStartResult = await handle.result()
    return result


async def row_of(store: StoreClient, checkpoint_id: str) -> StoredCheckpoint:
    rows = (await store.inventory()).checkpoints
    return next(row for row in rows if row.checkpoint_id == checkpoint_id)


async def until_there(cluster: LiveCluster, checkpoint_id: str) -> list[Path]:
    """Its partitions, once its download has put them in their place."""

    def found() -> list[Path]:
        return list(
            Path(cluster.env["FIRSTLIGHT_STATE_DIR"]).glob(f"**/checkpoints/{checkpoint_id}/partition-*.bin")
        )

    await until(lambda: bool(found()), within_s=20)
    return found()


async def test_bringing_up_twice_is_bringing_up_once(cluster: LiveCluster, source: Path) -> None:
    """An attempt may die right after its commit: the next one finds all done, and is told the same."""
    await cluster.add_model("twice", source)
    planned = await cluster.plan("twice")
    async with host_activities(cluster) as activities:
        plan = await downloaded(activities, planned)
        receipts = [
            await ActivityEnvironment().run(activities.bring_up, BringUpInput(plan)) for _ in range(2)
        ]
        assert receipts[0].endpoint == receipts[1].endpoint
        record = await cluster.instance(plan.instance_id)
        assert (record.state, record.endpoint) == (InstanceState.READY, receipts[0].endpoint)
        assert await engines_of(cluster, plan.instance_id) == [plan.epoch]
        phases = receipts[0].phases
        assert phases.total_s >= phases.load_s + phases.attach_s > 0

        stop = StopInstanceInput(plan.instance_id, plan.epoch, 0.0, "test over")
        for _ in range(2):
            await ActivityEnvironment().run(activities.stop_instance, stop)
    assert await engines_of(cluster, plan.instance_id) == []
    await finish(cluster, plan)


async def test_an_attempt_whose_plan_was_given_up_leaves_no_engine(
    cluster: LiveCluster, source: Path
) -> None:
    await cluster.add_model("fenced", source)
    planned = await cluster.plan("fenced")
    async with host_activities(cluster) as activities:
        plan = await downloaded(activities, planned)
        await finish(cluster, plan)
        with pytest.raises(ApplicationError) as failure:
            await ActivityEnvironment().run(activities.bring_up, BringUpInput(plan))
    assert failure.value.type == "stale_epoch"
    assert await engines_of(cluster, plan.instance_id) == []


@asynccontextmanager
async def host_activities(cluster: LiveCluster) -> AsyncIterator[GpuHost]:
    """The agent's own activities, in this process."""
    [host] = await cluster.hosts()
    async with Channels() as channels:
        yield GpuHost(
            host_id=host.host_id,
            channels=channels,
            host_address=host.host_address,
            store_address=host.store_address,
            database=cluster.database,
        )


async def downloaded(activities: GpuHost, plan: StartPlan) -> StartPlan:
    request = DownloadInput(plan.host_id, plan.model, plan.checkpoint)
    receipt = await ActivityEnvironment().run(activities.download_checkpoint, request)
    return replace(plan, checkpoint=replace(plan.checkpoint, manifest_digest=receipt.manifest_digest))


async def engines_of(cluster: LiveCluster, instance_id: str) -> list[int]:
    """Epochs of the engines that the host runs for the instance."""
    [host] = await cluster.hosts()
    async with Channels() as channels:
        engines = (await HostClient(channels, host.host_address).list_engines()).engines
    return [one.epoch for one in engines if one.instance_id == instance_id and one.state != "exited"]


async def finish(cluster: LiveCluster, plan: StartPlan) -> None:
    async with cluster.database.transaction() as session:
        await abandon_start(session, AbandonInput(plan, "cancelled", "test over", outcome="stopped"))


@pytest.mark.parametrize("after_s", [0.0, 0.015, 0.03])
async def test_an_agent_killed_at_any_moment_of_a_start(
    cluster: LiveCluster, source: Path, after_s: float
) -> None:
    await cluster.add_model("moment", source)
    # The checkpoint comes first, so that the kill meets the load, the attach or the commit.
    first = await cluster.start("moment")
    await cluster.until_state(first.instance_id, InstanceState.READY, within_s=90)
    await stop(cluster, first.instance_id)
    plan = await cluster.start("moment")
    assert plan.estimate.tier != "remote"
    await asyncio.sleep(after_s)
    cluster.kill_agent("gpu-host")
    began_s = time.monotonic()
    await cluster.until_state(plan.instance_id, InstanceState.READY, within_s=15)
    print(f"killed after {after_s} s, ready {time.monotonic() - began_s:.1f} s later")
    assert len(await engines_of(cluster, plan.instance_id)) == 1
    await stop(cluster, plan.instance_id)
    await until_agent(cluster)


async def until_agent(cluster: LiveCluster) -> None:
    await until(lambda: cluster.agent_pid("gpu-host") is not None, within_s=20)


async def test_a_killed_agent_delays_a_start_and_fails_no_instance(
    cluster: LiveCluster, source: Path
) -> None:
    await cluster.add_model("before", source)
    before = await cluster.start("before")
    await cluster.until_state(before.instance_id, InstanceState.READY, within_s=60)

    await cluster.add_model("during", source)
    cluster.kill_agent("gpu-host")
    began_s = time.monotonic()
    plan = await cluster.start("during")
    await cluster.until_state(plan.instance_id, InstanceState.READY, within_s=15)
    print(f"ready {time.monotonic() - began_s:.1f} s after the agent was killed")
    assert (await cluster.instance(before.instance_id)).state is InstanceState.READY
    assert await cluster.client.get_workflow_handle(instance_workflow_id(before.instance_id)).describe()
    for one in (before, plan):
        await stop(cluster, one.instance_id)


async def test_a_killed_control_worker_delays_a_start(cluster: LiveCluster, source: Path) -> None:
    await cluster.add_model("orphaned", source)
    plan = await cluster.start("orphaned")
    await cluster.kill("control-worker")
    began_s = time.monotonic()
    await cluster.serve("control-worker")
    await cluster.until_state(plan.instance_id, InstanceState.READY, within_s=15)
    print(f"ready {time.monotonic() - began_s:.1f} s after the control worker was killed")
    await stop(cluster, plan.instance_id)


async def test_a_killed_temporal_delays_a_start(
    cluster: LiveCluster, source: Path, temporal_server: EmbeddedTemporal
) -> None:
    await cluster.add_model("halted", source)
    plan = await cluster.start("halted")
    assert temporal_server.pid is not None
    os.kill(temporal_server.pid, signal.SIGKILL)
    await temporal_server.wait_exit()
    began_s = time.monotonic()
    await temporal_server.start()
    await cluster.until_state(plan.instance_id, InstanceState.READY, within_s=15)
    print(f"ready {time.monotonic() - began_s:.1f} s after Temporal was killed")
    await stop(cluster, plan.instance_id)


async def test_processes_end_cleanly_when_asked(cluster: LiveCluster) -> None:
    control, host = cluster.processes["control-worker"], cluster.processes["gpu-host"]
    agent = cluster.agent_pid("gpu-host")
    assert agent is not None
    os.kill(agent, signal.SIGTERM)
    # Its supervisor keeps it: it comes back.
    await until(lambda: cluster.agent_pid("gpu-host") not in (None, agent), within_s=20)
    control.terminate()
    assert await control.wait() == 0
    host.terminate()
    assert await host.wait() == 0
