"""Hosts: registration, lease, loss, and mending what drifted."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from fleets import DIGEST, add_host, add_model, placed, plan, publish, running
from sqlalchemy import text

from firstlight.contracts.hosts import (
    EngineRow,
    EngineToStop,
    FailHostInput,
    HostReport,
    MendInput,
    MendReceipt,
    StoredRow,
)
from firstlight.contracts.starts import StartPlan
from firstlight.database import hosts_repository, instances_repository, models_repository
from firstlight.database.connection import Database
from firstlight.database.keys_repository import list_audit
from firstlight.database.records import GpuDescription, HostRecord, HostRegistration
from firstlight.domain.errors import UnknownCheckpoint, UnknownHost
from firstlight.domain.fleet import PRIORS, Edge, Tier
from firstlight.domain.lifecycle import HostState, InstanceState, PlacementState

CHECKPOINT = "tiny@abcd1234"


async def hosts(database: Database) -> dict[str, HostRecord]:
    async with database.session() as session:
        return {host.host_id: host for host in await hosts_repository.list_hosts(session)}


async def state(database: Database, start: StartPlan) -> InstanceState:
    async with database.session() as session:
        return (await instances_repository.get_instance(session, start.instance_id)).state


def engine(start: StartPlan) -> EngineRow:
    return EngineRow(start.instance_id, start.epoch, "serving", "127.0.0.1:9000")


def stored(
    *, ssd: bool = True, dram: bool = True, quarantined: bool = False, digest: str = DIGEST
) -> StoredRow:
    return StoredRow(CHECKPOINT, 1_100_000_000, ssd, dram, quarantined, digest)


async def mend(
    database: Database,
    *,
    engines: list[EngineRow] | None = None,
    held: list[StoredRow] | None = None,
    stale_start_s: float = 30.0,
    abandoned_starts: frozenset[str] | None = None,
    taken_at_unix_s: float = 0.0,
) -> MendReceipt:
    report = HostReport(
        "host-a", [stored()] if held is None else held, engines or [], taken_at_unix_s=taken_at_unix_s
    )
    async with database.transaction() as session:
        return await hosts_repository.mend_host(
            session, MendInput(report, stale_start_s), abandoned_starts=abandoned_starts
        )


async def test_each_registration_fences_off_the_one_before(database: Database) -> None:
    first = await add_host(database, "host-a", gpu_count=2)
    second = await add_host(database, "host-a", gpu_count=1)
    assert (first, second) == (1, 2)
    async with database.transaction() as session:
        assert not await hosts_repository.renew_lease(
            session, host_id="host-a", registration=first, lease_s=9
        )
        assert await hosts_repository.lease_remaining_s(session, host_id="host-a", registration=first) is None
        assert await hosts_repository.renew_lease(session, host_id="host-a", registration=second, lease_s=9)
        left_s = await hosts_repository.lease_remaining_s(session, host_id="host-a", registration=second)
        assert left_s is not None and 8 < left_s <= 9
        receipt = await hosts_repository.fail_host(session, FailHostInput("host-a", first, "old news"))
        assert not receipt.marked
    host = (await hosts(database))["host-a"]
    assert host.state is HostState.READY and len(host.gpus) == 1
    assert host.edges[Edge.SSD_TO_DRAM].bandwidth_bytes_per_s == 1e9, "seeded from the probe"


def registration_of(*gpus: GpuDescription, ssd: float = 0.0, bus: float = 0.0) -> HostRegistration:
    return HostRegistration(
        host_id="host-g",
        host_class="gpu-x1" if gpus else "cpu-2c",
        host_address="127.0.0.1:7000",
        store_address="127.0.0.1:7001",
        gpu_count=1,
        gpu_memory_bytes=8 << 30,
        ssd_capacity_bytes=100 << 30,
        dram_capacity_bytes=16 << 30,
        gpus=gpus,
        ssd_read_bytes_per_s=ssd,
        dram_to_gpu_bytes_per_s=bus,
    )


async def test_what_a_probe_measures_is_where_estimates_start_and_survives(database: Database) -> None:
    gpu = GpuDescription(name="NVIDIA H200", memory_bytes=140 << 30)

    async def registered(registration: HostRegistration) -> HostRecord:
        async with database.transaction() as session:
            await hosts_repository.register_host(session, registration, lease_s=60)
        return (await hosts(database))["host-g"]

    host = await registered(registration_of(gpu))
    assert {edge: host.edges[edge].bandwidth_bytes_per_s for edge in Edge} == {
        edge: PRIORS[edge].bandwidth_bytes_per_s for edge in Edge
    }, "nothing is known yet"
    async with database.transaction() as session:
        await hosts_repository.set_probe(
            session, host_id="host-g", ssd_read_bytes_per_s=6e9, dram_to_gpu_bytes_per_s=5e10
        )
    host = (await hosts(database))["host-g"]
    assert host.edges[Edge.SSD_TO_DRAM].bandwidth_bytes_per_s == host.ssd_read_bytes_per_s == 6e9
    assert host.edges[Edge.DRAM_TO_GPU].bandwidth_bytes_per_s == host.dram_to_gpu_bytes_per_s == 5e10
    # A store that was started with nothing in its state directory knows nothing; the fleet does.
    assert (await registered(registration_of(gpu))).edges == host.edges
    assert (await registered(registration_of(gpu, ssd=5e9))).ssd_read_bytes_per_s == 5e9
    # Its driver is gone: engines compute in the memory that the bytes are in.
    without = await registered(registration_of())
    assert Edge.DRAM_TO_GPU not in without.edges and without.dram_to_gpu_bytes_per_s == 0


async def test_a_lost_host_fails_what_it_served_and_may_come_back(database: Database) -> None:
    registration = await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "tiny")
    await add_model(database, "other")
    served, starting = await running(database, "tiny"), await placed(database, "other")
    request = FailHostInput("host-a", registration, "no heartbeat for 10 s")
    for _ in range(2):
        async with database.transaction() as session:
            receipt = await hosts_repository.fail_host(session, request)
        assert receipt.marked and receipt.failed_instances == [served.instance_id]
    assert await state(database, served) is InstanceState.FAILED
    assert await state(database, starting) is InstanceState.STARTING, "its workflow plans it anew"
    async with database.transaction() as session:
        assert not await hosts_repository.renew_lease(
            session, host_id="host-a", registration=registration, lease_s=9
        )
    lost = (await hosts(database))["host-a"]
    assert lost.state is HostState.LOST
    assert {(row.checkpoint_id, row.tier) for row in lost.placements} == {(CHECKPOINT, Tier.SSD)}
    assert await add_host(database, "host-a", gpu_count=2) == registration + 1
    assert (await hosts(database))["host-a"].state is HostState.READY


async def test_a_gpu_that_is_held_stays_until_it_is_released(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=2)
    for name in ("tiny", "other"):
        await add_model(database, name)
        await running(database, name)
    await add_host(database, "host-a", gpu_count=1)
    assert len((await hosts(database))["host-a"].gpus) == 2


async def test_placements_are_set_one_tier_at_a_time(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")

    async def set_placements(
        host: str = "host-a", checkpoint: str = CHECKPOINT, **tiers: bool | None
    ) -> None:
        async with database.transaction() as session:
            await hosts_repository.set_placements(
                session, host_id=host, checkpoint_id=checkpoint, size_bytes=10, manifest_digest=DIGEST,
                ssd=tiers.get("ssd"), dram=tiers.get("dram"),
            )  # fmt: skip

    async def tiers() -> set[Tier]:
        return {row.tier for row in (await hosts(database))["host-a"].placements}

    await set_placements(ssd=True)
    assert await tiers() == {Tier.SSD}
    await set_placements(dram=True)
    assert await tiers() == {Tier.SSD, Tier.DRAM}
    await set_placements(dram=False)
    assert await tiers() == {Tier.SSD}
    with pytest.raises(UnknownHost):
        await set_placements(host="nowhere", ssd=True)
    with pytest.raises(UnknownCheckpoint):
        await set_placements(checkpoint="no@abcd1234", ssd=True)


async def test_nothing_is_mended_where_nothing_drifted(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    assert await mend(database, engines=[engine(start)]) == MendReceipt()


async def test_engines_that_no_row_owns_are_named(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    older = EngineRow(start.instance_id, start.epoch - 1, "serving", "127.0.0.1:1")
    stranger = EngineRow("i-gone", 77, "serving", "127.0.0.1:2")
    spare = EngineRow("", 0, "spare", "")
    receipt = await mend(database, engines=[engine(start), older, stranger, spare])
    assert receipt.orphans == [EngineToStop(start.instance_id, start.epoch - 1), EngineToStop("i-gone", 77)]
    assert await state(database, start) is InstanceState.READY


async def test_a_ready_row_without_its_engine_is_closed(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    # A report taken before, or just as, the row became ready cannot know of its engine.
    assert (await mend(database, taken_at_unix_s=time.time())).mended == []
    receipt = await mend(database, taken_at_unix_s=time.time() + 60)
    assert len(receipt.mended) == 1 and start.instance_id in receipt.mended[0]
    assert await state(database, start) is InstanceState.FAILED
    assert (await hosts(database))["host-a"].gpus[0].instance_id is None


async def test_placements_follow_the_report(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")

    async def placements() -> dict[Tier, PlacementState]:
        return {row.tier: row.state for row in (await hosts(database))["host-a"].placements}

    async def mended(*held: StoredRow) -> int:
        return len((await mend(database, engines=[engine(start)], held=list(held))).mended)

    assert await mended(stored(dram=False)) == 1
    assert await placements() == {Tier.SSD: PlacementState.READY}
    assert await mended(stored(dram=False, quarantined=True)) == 1
    assert await placements() == {Tier.SSD: PlacementState.QUARANTINED}
    assert await mended(stored()) == 2
    assert await placements() == {Tier.SSD: PlacementState.READY, Tier.DRAM: PlacementState.READY}
    assert await mended(stored(digest="other" * 10)) == 2, "other bytes are no copy of it"
    assert set((await placements()).values()) == {PlacementState.QUARANTINED}
    assert await mended() == 2
    assert await placements() == {}
    unknown = StoredRow("unknown@abcd1234", 5, True, False, False, "")
    assert await mended(unknown) == 0


async def test_a_placement_has_the_size_that_the_store_tells(database: Database) -> None:
    """Not the one that was expected when its route was published, while its first download ran."""
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    await publish(database, start, size=605_000_000)

    async def sizes() -> set[int]:
        return {row.size_bytes for row in (await hosts(database))["host-a"].placements}

    told = stored()
    assert await sizes() == {605_000_000}
    receipt = await mend(database, engines=[engine(start)], held=[told])
    assert await sizes() == {told.size_bytes} and receipt.mended == []


async def test_a_copy_that_its_own_store_condemned_is_written_down_once(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    for _ in range(2):
        await mend(database, engines=[engine(start)], held=[stored(dram=False)])
        gone = stored(ssd=False, dram=False, quarantined=True, digest="")
        assert (await mend(database, engines=[engine(start)], held=[gone])).mended
    async with database.session() as session:
        [line] = await list_audit(session, subject=f"checkpoint/{CHECKPOINT}")
    assert (line.actor, line.act) == ("host/host-a", "checkpoint quarantined")


async def age(database: Database, seconds: float) -> None:
    async with database.transaction() as session:
        await session.execute(
            text("UPDATE instances SET planned_at = planned_at - make_interval(secs => :s)"), {"s": seconds}
        )


async def test_a_start_that_nobody_carries_out_is_given_up(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    assert (await mend(database, held=[], abandoned_starts=frozenset({start.instance_id}))).mended == [], (
        "it is young"
    )
    await age(database, 31)
    async with database.session() as session:
        stale = await hosts_repository.list_stale_starts(session, host_id="host-a", older_than_s=30)
    assert [row.instance_id for row in stale] == [start.instance_id]
    assert (await mend(database, held=[], abandoned_starts=frozenset())).mended == [], "it runs"
    # Whether its workflow runs is unknown, and a download of this size may take minutes.
    assert (await mend(database, held=[])).mended == []
    assert len((await mend(database, held=[], abandoned_starts=frozenset({start.instance_id}))).mended) == 1
    assert await state(database, start) is InstanceState.FAILED
    again = await placed(database, "tiny")
    await age(database, 3600)
    assert len((await mend(database, held=[])).mended) == 1
    assert await state(database, again) is InstanceState.FAILED


async def test_a_forgotten_start_on_a_lost_host_is_given_up_by_any_host(database: Database) -> None:
    registration = await add_host(database, "host-b")
    await add_model(database, "tiny")
    start = await placed(database, "tiny")
    await add_host(database, "host-a")
    async with database.transaction() as session:
        await hosts_repository.fail_host(session, FailHostInput("host-b", registration, "silent"))
    await age(database, 31)
    assert len((await mend(database, held=[], abandoned_starts=frozenset({start.instance_id}))).mended) == 1
    assert await state(database, start) is InstanceState.FAILED


async def test_a_deleted_model_comes_back_to_the_copies_that_are_left(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "tiny")
    assert (await mend(database)).mended, "its engine is gone"
    async with database.transaction() as session:
        assert await models_repository.finish_delete(session, "tiny")
    assert await state(database, start) is InstanceState.FAILED, "history stays"
    record = await add_model(database, "tiny")
    assert record.manifest_digest == DIGEST
    assert (await placed(database, "tiny")).estimate.tier == Tier.DRAM


async def test_a_checkpoint_of_no_model_and_no_host_is_forgotten(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    await publish(database, await placed(database, "tiny"))
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "tiny")
    await mend(database)
    async with database.transaction() as session:
        assert await models_repository.finish_delete(session, "tiny")
    assert len((await mend(database, held=[])).mended) == 2
    assert (await add_model(database, "tiny")).manifest_digest == ""


async def test_a_delete_is_finished_by_whoever_closes_the_last_instance(database: Database) -> None:
    registration = await add_host(database, "host-a", gpu_count=2)
    for name in ("tiny", "other"):
        await add_model(database, name)
        await running(database, name)
        async with database.transaction() as session:
            await models_repository.begin_delete(session, name)
    assert "model tiny was deleted: nothing of it runs" in (await mend(database)).mended
    async with database.session() as session:
        assert await models_repository.list_models(session) == []
    await add_model(database, "tiny")
    await running(database, "tiny")
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "tiny")
        await hosts_repository.fail_host(session, FailHostInput("host-a", registration, "silent"))
        assert await models_repository.list_models(session) == []


async def test_decisions_that_started_nothing_are_forgotten_after_a_week(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    await placed(database, "tiny")
    for _ in range(2):
        await plan(database, "tiny")
    async with database.transaction() as session:
        await session.execute(
            text(
                "UPDATE decisions SET decided_at = now() - interval '8 days' WHERE kind = 'place' "
                "OR ctid IN (SELECT ctid FROM decisions WHERE kind = 'wait' LIMIT 1)"
            )
        )
    await mend(database, held=[])
    async with database.session() as session:
        kinds = (await session.scalars(text("SELECT kind FROM decisions ORDER BY kind"))).all()
    assert kinds == ["place", "wait"]


async def test_gpus_are_recorded_as_their_driver_describes_them(database: Database) -> None:
    described = tuple(
        GpuDescription(name="NVIDIA H200", memory_bytes=size_bytes) for size_bytes in (143 << 30, 71 << 30)
    )
    registration = HostRegistration(
        host_id="gpu-1",
        host_class="nvidia-h200-x2",
        host_address="127.0.0.1:7000",
        store_address="127.0.0.1:7001",
        gpu_count=2,
        gpu_memory_bytes=8 << 30,
        ssd_capacity_bytes=100 << 30,
        dram_capacity_bytes=16 << 30,
        gpus=described,
    )
    async with database.transaction() as session:
        await hosts_repository.register_host(session, registration, lease_s=60.0)
        slots = replace(registration, gpus=(), host_id="cpu-1")
        await hosts_repository.register_host(session, slots, lease_s=60.0)
    found = {host_id: host.gpus for host_id, host in (await hosts(database)).items()}
    assert [(gpu.name, gpu.memory_bytes) for gpu in found["gpu-1"]] == [
        (one.name, one.memory_bytes) for one in described
    ]
    assert [(gpu.name, gpu.memory_bytes) for gpu in found["cpu-1"]] == [("", 8 << 30)] * 2
