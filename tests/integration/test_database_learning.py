"""Predicted beside actual, and an estimator that follows what was seen."""

from __future__ import annotations

import pytest
from fleets import add_host, add_model, placed, publish, running

from firstlight.contracts.instances import FinishInput
from firstlight.contracts.starts import PhaseSeconds, RecordStartInput, StartPlan
from firstlight.database import hosts_repository, instances_repository, starts_repository
from firstlight.database.connection import Database
from firstlight.domain.errors import UnknownInstance
from firstlight.domain.fleet import Edge
from firstlight.domain.lifecycle import InstanceState


async def record(database: Database, start: StartPlan, phases: PhaseSeconds) -> None:
    async with database.transaction() as session:
        await starts_repository.record_start(session, RecordStartInput(start, phases))


async def finish(database: Database, start: StartPlan) -> None:
    async with database.transaction() as session:
        await instances_repository.finish_instance(
            session, FinishInput(start.instance_id, start.epoch, "stopped", "test")
        )


async def test_a_start_is_kept_with_both_sides_and_its_first_token(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    phases = PhaseSeconds(download_s=50, load_s=1, attach_s=0.2, control_s=0.03, total_s=51.3, tier="remote")
    async with database.transaction() as session:
        await starts_repository.record_first_token(
            session, instance_id=start.instance_id, first_token_s=0.4, request_to_first_token_s=51.9
        )
    for _ in range(2):
        await record(database, start, phases)
    async with database.session() as session:
        [row] = await starts_repository.list_starts(session, model="tiny")
    assert row.state is InstanceState.READY and row.predicted == start.estimate
    assert row.actual is not None and (row.actual.total_s, row.actual.load_s) == (51.3, 1.0)
    assert (row.first_token_s, row.request_to_first_token_s) == (0.4, 51.9)
    with pytest.raises(UnknownInstance):
        async with database.transaction() as session:
            await starts_repository.record_first_token(
                session, instance_id="i-none", first_token_s=1, request_to_first_token_s=1
            )


async def test_the_next_estimate_follows_what_was_seen(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny", size_bytes=1_000_000_000)
    for _ in range(6):
        start = await placed(database, "tiny")
        await publish(database, start, size=1_000_000_000)
        # Half a GB/s, where the probe had promised one.
        phases = PhaseSeconds(load_s=2.0, attach_s=0.3, control_s=0.02, total_s=2.32, tier="ssd")
        await record(database, start, phases)
        await finish(database, start)
    async with database.transaction() as session:
        await hosts_repository.set_placements(
            session, host_id="host-a", checkpoint_id="tiny@abcd1234", ssd=True, dram=False,
            size_bytes=1_000_000_000, manifest_digest="",
        )  # fmt: skip
        [host] = await hosts_repository.list_hosts(session)
    edge = host.edges[Edge.SSD_TO_DRAM]
    assert edge.observations == 6 and edge.bandwidth_bytes_per_s == pytest.approx(0.5e9, rel=0.05)
    estimate = (await placed(database, "tiny")).estimate
    assert estimate.load_s == pytest.approx(2.0, abs=0.1)
    assert (estimate.attach_s, estimate.control_s) == (0.3, 0.02)
    # Registering again keeps what was learned.
    await add_host(database, "host-a", ssd_read=3e9)
    async with database.session() as session:
        [host] = await hosts_repository.list_hosts(session)
    assert host.edges[Edge.SSD_TO_DRAM] == edge
