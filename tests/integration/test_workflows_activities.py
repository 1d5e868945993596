"""Control activities and a host's membership on a real Postgres (and Temporal, where they ask it)."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.control import Control
from activities.leases import watch_lease
from firstlight.contracts.hosts import FailHostInput, HostReport, LeaseWatchInput, MendInput, ReconcileInput
from firstlight.contracts.instances import BeginDrainInput, FinishInput
from firstlight.contracts.naming import host_workflow_id
from firstlight.contracts.starting import start_cold_start
from firstlight.contracts.starts import ColdStartInput, ReplanInput
from firstlight.database import hosts_repository, instances_repository, models_repository
from firstlight.database.connection import Database
from firstlight.database.records import HostRecord, HostRegistration
from firstlight.domain.errors import UnknownModel
from firstlight.domain.lifecycle import HostState, InstanceState
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.launcher.membership import Membership
from tests.integration.fleets import add_host, add_model, placed, running


@pytest_asyncio.fixture
async def client(temporal_server: EmbeddedTemporal) -> Client:
    return await Client.connect(temporal_server.address)


@pytest.fixture
def control(database: Database, client: Client) -> Control:
    return Control(database=database, client=client)


async def state_of(database: Database, instance_id: str) -> InstanceState:
    async with database.session() as session:
        return (await instances_repository.get_instance(session, instance_id)).state


async def host_of(database: Database, host_id: str) -> HostRecord | None:
    async with database.session() as session:
        found = [host for host in await hosts_repository.list_hosts(session) if host.host_id == host_id]
    return found[0] if found else None


async def test_errors_leave_as_failures_that_name_their_code(control: Control, database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    stale = BeginDrainInput(start.instance_id, start.epoch - 1, "a dead workflow's wish")
    with pytest.raises(ApplicationError) as failure:
        await ActivityEnvironment().run(control.begin_drain, stale)
    assert (failure.value.type, failure.value.non_retryable) == ("stale_epoch", True)
    assert await state_of(database, start.instance_id) is InstanceState.READY


async def test_the_last_instance_of_a_deleted_model_takes_it_along(
    control: Control, database: Database
) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "tiny", max_instances=2)
    first = await running(database, "tiny")
    second = await running(database, "tiny", may_wait=False)
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "tiny")
    for start, is_left in ((first, True), (second, False)):
        finish = FinishInput(start.instance_id, start.epoch, "stopped", "deleted")
        # Twice: an attempt may have died after its commit.
        for _ in range(2):
            await ActivityEnvironment().run(control.finish_instance, finish)
        async with database.session() as session:
            if is_left:
                await models_repository.get_model(session, "tiny")
            else:
                with pytest.raises(UnknownModel):
                    await models_repository.get_model(session, "tiny")


async def test_only_starts_that_nobody_carries_out_are_given_up(
    control: Control, database: Database, client: Client
) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "carried")
    await add_model(database, "dropped")
    carried, dropped = await placed(database, "carried"), await placed(database, "dropped")
    # No worker runs here, so this workflow stays running.
    handle = await start_cold_start(client, ColdStartInput(carried))
    try:
        mend = MendInput(HostReport("host-a", taken_at_unix_s=time.time()), stale_start_s=0.0)
        receipt = await ActivityEnvironment().run(control.mend_host, mend)
    finally:
        await handle.terminate()
    assert await state_of(database, carried.instance_id) is InstanceState.STARTING
    assert await state_of(database, dropped.instance_id) is InstanceState.FAILED
    assert any(dropped.instance_id in sentence for sentence in receipt.mended)


async def test_a_silent_host_is_asked_again_only_when_no_other_can(
    control: Control, database: Database
) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    silent = ReplanInput(start, ["host-a"], "no answer", silent_hosts=["host-a"])
    again = (await ActivityEnvironment().run(control.replan_start, silent)).plan
    assert again is not None
    assert (again.host_id, again.epoch > start.epoch) == ("host-a", True)

    await add_host(database, "host-b")
    other = ReplanInput(again, ["host-a", "host-a"], "no answer", silent_hosts=["host-a", "host-a"])
    moved = (await ActivityEnvironment().run(control.replan_start, other)).plan
    assert moved is not None and moved.host_id == "host-b"


async def test_lost_hosts_are_not_asked_for_their_inventory(control: Control, database: Database) -> None:
    registration = await add_host(database, "host-a")
    await add_host(database, "host-b")
    lost = FailHostInput("host-a", registration, "silent")
    for _ in range(2):
        assert (await ActivityEnvironment().run(control.fail_host, lost)).marked
    hosts = await ActivityEnvironment().run(control.list_hosts, ReconcileInput())
    assert hosts.host_ids == ["host-b"]


async def test_a_lease_ends_by_time_or_by_a_newer_registration(database: Database) -> None:
    first = await add_host(database, "host-a", lease_s=0.5)
    receipt = await watch_lease(database, LeaseWatchInput("host-a", first), grace_s=0.1)
    assert receipt.ended_by == "expired"

    second = await add_host(database, "host-a", lease_s=60)
    assert (await watch_lease(database, LeaseWatchInput("host-a", first))).ended_by == "superseded"
    elapsed = await watch_lease(database, LeaseWatchInput("host-a", second, at_most_s=0.2))
    assert elapsed.ended_by == "elapsed"


async def test_an_expired_lease_is_not_believed_right_after_a_silence(database: Database) -> None:
    """The watcher itself may have been away, and Postgres with it: the host gets time to come first."""
    registration = await add_host(database, "host-a", lease_s=0.05)
    await asyncio.sleep(0.06)
    watch = asyncio.create_task(watch_lease(database, LeaseWatchInput("host-a", registration), grace_s=2.0))
    async with database.transaction() as session:
        await hosts_repository.renew_lease(session, host_id="host-a", registration=registration, lease_s=60)
    done, _ = await asyncio.wait([watch], timeout=2.5)
    watch.cancel()
    assert not done


def registration_of(host_id: str) -> HostRegistration:
    return HostRegistration(
        host_id=host_id,
        host_class="cpu-2c",
        host_address="127.0.0.1:1",
        store_address="127.0.0.1:2",
        gpu_count=1,
        gpu_memory_bytes=1 << 30,
        ssd_capacity_bytes=1 << 30,
        dram_capacity_bytes=1 << 30,
    )


async def test_a_member_that_was_taken_for_lost_comes_back(database: Database, client: Client) -> None:
    membership = Membership(database, client, registration_of("host-m"), lease_s=1.5)
    keeping = asyncio.create_task(membership.keep())
    try:
        joined = await until_host(database, "host-m", HostState.READY)
        workflow = client.get_workflow_handle(host_workflow_id("host-m"))
        async with database.transaction() as session:
            await hosts_repository.fail_host(session, FailHostInput("host-m", joined.registration, "test"))
        back = await until_host(database, "host-m", HostState.READY)
        assert back.registration == joined.registration + 1
        await asyncio.sleep(2.0)
        # Renewed in time: longer than a lease has passed.
        kept = await until_host(database, "host-m", HostState.READY)
        assert kept.registration == back.registration
        assert kept.lease_remaining_s > 0
        await workflow.terminate()
    finally:
        keeping.cancel()


async def until_host(database: Database, host_id: str, state: HostState) -> HostRecord:
    deadline_s = time.monotonic() + 10
    while True:
        found = await host_of(database, host_id)
        if found is not None and found.state is state:
            return found
        assert time.monotonic() < deadline_s, found
        await asyncio.sleep(0.05)


async def test_an_outage_is_told_once(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    nowhere = Database("postgresql+psycopg://postgres@127.0.0.1:1/none")
    membership = Membership(nowhere, client, registration_of("host-n"), lease_s=0.3)
    with caplog.at_level(logging.INFO, logger="firstlight.launcher.membership"):
        keeping = asyncio.create_task(membership.keep())
        await asyncio.wait([keeping], timeout=1.0)
        assert not keeping.done()
        keeping.cancel()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Postgres is away" in caplog.text
    await nowhere.close()
