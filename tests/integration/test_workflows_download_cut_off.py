"""A GPU host dies in a download: how far the bytes had come is shown, and the replay goes on from there.

Every process is the product's own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from operators_shell import Operator
from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError

from firstlight.contracts.naming import cold_start_id, download_id
from firstlight.domain.lifecycle import InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from tests.chaos.fault_driver import FaultDriver
from tests.integration.live_cluster import live_cluster
from tests.integration.tiny_models import write_tiny_model

pytestmark = pytest.mark.slow
HOST = "host-cut-off"


@pytest.fixture
def faults() -> Iterator[FaultDriver]:
    with FaultDriver() as driver:
        yield driver


async def test_the_last_heartbeat_is_shown_and_the_download_goes_on(
    database_url: str, temporal_server: EmbeddedTemporal, faults: FaultDriver, tmp_path: Path
) -> None:
    operator = Operator(temporal_server.address, database_url)
    source = write_tiny_model(tmp_path / "source", "llama")
    # The agent stands still behind its last byte: it has beaten, and has not said that it is done. Nor has
    # the engine's activity, which waits for no more than the bytes and would end the start well.
    is_dead = threading.Event()
    stands = [
        faults.arm(f"{activity} ends", lambda reached: bool(is_dead.wait(120)))
        for activity in ("download_checkpoint", "bring_up")
    ]
    async with live_cluster(
        database_url=database_url,
        temporal_address=temporal_server.address,
        state_dir=tmp_path / "state",
        lease_s=60.0,
        fault_socket=faults.socket,
    ) as cluster:
        await cluster.serve("gpu-host", FIRSTLIGHT_HOST_IDS=HOST)
        await cluster.serve("control-worker")
        await cluster.until_hosts(1)
        await cluster.add_model("cut-off", source)
        # One plan: another would choose this host again, and its download, never taken up, is the one shown.
        plan = await cluster.start("cut-off", max_plans=1)
        download = download_id(plan.checkpoint.checkpoint_id, HOST)
        start = cold_start_id("cut-off", plan.instance_id)

        bytes_done = await until_it_has_told(cluster.client, download)
        await cluster.kill("gpu-host")
        is_dead.set()
        assert [trap.failure for trap in stands] == [None, None]
        await until_tried_again(cluster.client, download)
        # The next attempt waits for a host that is no more: what the first one told is all there is.
        waiting = await operator.runs("show", download)
        assert "download_checkpoint is scheduled, try 2: timeout heartbeat" in waiting.stdout, waiting.stdout
        assert "Last heartbeat" in waiting.stdout and f'"bytes_done": {bytes_done}' in waiting.stdout
        with pytest.raises(WorkflowFailureError):
            await cluster.client.get_workflow_handle(download).result()
        with pytest.raises(WorkflowFailureError):
            await cluster.client.get_workflow_handle(start).result()

        await operator.finds_soon(download, by=("--type", "ModelDownload", "--host", HOST))
        shown = await operator.runs("show", download)
        assert "Last heartbeat" in shown.stdout and f'"bytes_done": {bytes_done}' in shown.stdout, (
            shown.stdout
        )
        assert "download_checkpoint" in shown.stdout and "schedule-to-start" in shown.stdout
        assert f"not looked at: {HOST} was not asked" in shown.stdout

        await cluster.serve("gpu-host", FIRSTLIGHT_HOST_IDS=HOST)
        for workflow_id in (download, start):
            done = await operator.is_told("replay", workflow_id, "--from-failure")
            await cluster.client.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
        await cluster.until_state(plan.instance_id, InstanceState.READY, within_s=5)


async def until_it_has_told(client: Client, workflow_id: str) -> int:
    """Bytes that its activity's heartbeat speaks of."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        with suppress(RPCError):
            described = await client.get_workflow_handle(workflow_id).describe()
            for one in described.raw_description.pending_activities:
                [told] = await client.data_converter.decode(list(one.heartbeat_details.payloads)) or [{}]
                if told.get("bytes_done"):
                    return int(told["bytes_done"])
        await asyncio.sleep(0.02)
    raise AssertionError("it told of no bytes within 60 s")


async def until_tried_again(client: Client, workflow_id: str) -> None:
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        described = await client.get_workflow_handle(workflow_id).describe()
        if any(one.attempt == 2 for one in described.raw_description.pending_activities):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it was not tried again within 20 s")
