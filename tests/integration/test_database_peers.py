"""Plans that fetch from another host's store: decided, written, queued for, learned."""

from __future__ import annotations

import pytest
from fleets import add_host, add_model, placed, publish, running

from firstlight.contracts.starts import PhaseSeconds, RecordStartInput
from firstlight.database import hosts_repository, starts_repository
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_fleet, read_picture
from firstlight.database.placements import write_placement
from firstlight.domain.fleet import Edge, Tier

ENDPOINT = "10.0.0.1:9"
SIZE = 1_000_000_000


async def fleet(database: Database) -> None:
    """host-a serves `tiny` on its one GPU and gives it to others; host-b and host-c are empty."""
    await add_host(database, "host-a")
    await add_model(database, "tiny", max_instances=3)
    await running(database, "tiny")
    async with database.transaction() as session:
        await hosts_repository.set_peer_endpoint(session, host_id="host-a", peer_endpoint=ENDPOINT)
    for host in ("host-b", "host-c"):
        await add_host(database, host)


async def test_a_host_without_the_bytes_is_planned_to_fetch_them_from_one_that_has_them(
    database: Database,
) -> None:
    await fleet(database)
    start = await placed(database, "tiny", may_wait=False)
    assert (start.estimate.tier, start.estimate.peer_host_id) == ("peer", "host-a")
    assert start.checkpoint.peer_endpoints == [ENDPOINT]
    # Another start waits behind the first at the giver's uplink.
    second = await placed(database, "tiny", may_wait=False)
    assert second.estimate.peer_host_id == "host-a" and second.host_id != start.host_id
    assert second.estimate.queue_s > start.estimate.queue_s == 0.0
    async with database.session() as session:
        view = await read_fleet(session, model="tiny", now_unix_s=0.0)
        picture = await read_picture(session, now_unix_s=0.0)
        shown = (await starts_repository.list_starts(session, model="tiny"))[1]
    assert next(host for host in view.snapshot.hosts if host.host_id == "host-a").uplink_queued_bytes > 0
    assert picture.models["tiny"].model == view.wanted.model
    assert [host.tiers for host in picture.snapshot.hosts] == [host.tiers for host in view.snapshot.hosts]
    chosen = next(one for one in shown.candidates if one.host_id == start.host_id)
    assert chosen.estimate is not None and chosen.estimate.peer_host_id == "host-a"
    assert shown.tier == Tier.PEER


async def test_what_came_from_a_peer_teaches_that_edge_alone(database: Database) -> None:
    await fleet(database)
    start = await placed(database, "tiny", may_wait=False)
    await publish(database, start, size=SIZE)
    phases = PhaseSeconds(download_s=4.0, attach_s=0.1, total_s=4.2, tier="peer", bytes_moved=SIZE)
    async with database.transaction() as session:
        await starts_repository.record_start(session, RecordStartInput(start, phases))
    async with database.session() as session:
        hosts = {host.host_id: host for host in await hosts_repository.list_hosts(session)}
        [row, _] = await starts_repository.list_starts(session, model="tiny")
    edges = hosts[start.host_id].edges
    assert edges[Edge.PEER_TO_DRAM].observations == 1
    assert edges[Edge.REMOTE_TO_SSD].observations == edges[Edge.SSD_TO_DRAM].observations == 0
    assert row.tier == "peer" and row.actual is not None and row.actual.download_s == 4.0


@pytest.mark.parametrize("giver", ["lost", "silent"])
async def test_a_lost_giver_and_one_that_gives_nothing_are_not_asked(database: Database, giver: str) -> None:
    await fleet(database)
    if giver == "silent":
        async with database.transaction() as session:
            await hosts_repository.set_peer_endpoint(session, host_id="host-a", peer_endpoint="")
    else:
        await add_host(database, "host-a", lease_s=-1)
    start = await placed(database, "tiny", may_wait=False)
    assert (start.estimate.tier, start.checkpoint.peer_endpoints) == ("remote", [])


async def test_a_host_that_has_the_bytes_is_told_who_else_has_them(database: Database) -> None:
    """Should its own copy turn out to be damaged, it goes on from there."""
    await fleet(database)
    held = (await placed(database, "tiny", may_wait=False)).checkpoint.checkpoint_id
    async with database.transaction() as session:
        await hosts_repository.set_peer_endpoint(session, host_id="host-c", peer_endpoint="10.0.0.3:9")
        await write_placement(session, host_id="host-c", checkpoint_id=held, tier=Tier.SSD, size_bytes=SIZE)
    start = await placed(database, "tiny", may_wait=False)
    assert (start.host_id, start.estimate.tier, start.estimate.peer_host_id) == ("host-c", "ssd", "")
    assert start.checkpoint.peer_endpoints == [ENDPOINT]
