"""The fleet that the scheduler's benchmark writes is the fleet that is read back, and decided about alike."""

from __future__ import annotations

import time
from random import Random

from benchmarks.scheduler_database import fill
from benchmarks.scheduler_fleet import FleetShape, make_fleet, make_requests
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_fleet
from firstlight.domain.fleet import StartRequest
from firstlight.domain.scheduler import Migrate, Place, decide


async def test_a_fleet_from_postgres_is_the_one_that_was_written(
    database: Database, database_url: str
) -> None:
    snapshot, zipf = make_fleet(FleetShape(hosts=6, models=40, load=0.95), Random(2))
    fill(database_url, snapshot, zipf.models)
    for request in make_requests(zipf, 5):
        async with database.session() as session:
            view = await read_fleet(session, model=request.model.name, now_unix_s=time.time())
        read = view.snapshot
        assert {one.instance_id for one in read.running} == {one.instance_id for one in snapshot.running}
        written = {host.host_id: host for host in snapshot.hosts}
        for host in read.hosts:
            assert host.edges == written[host.host_id].edges
            owners = {gpu.index: gpu.instance_id for gpu in host.gpus}
            assert owners == {gpu.index: gpu.instance_id for gpu in written[host.host_id].gpus}
            checkpoint_id = request.model.checkpoint_id
            assert host.tiers.get(checkpoint_id) == written[host.host_id].tiers.get(checkpoint_id)
        decision = decide(StartRequest(view.wanted.model, deadline_s=300.0), read)
        assert isinstance(decision, Place | Migrate)
