"""A route whose bytes stopped coming is taken back, and its start goes on as if it had never been ready."""

from __future__ import annotations

from firstlight.contracts.starts import AbandonInput
from firstlight.database import instances_repository
from firstlight.database.connection import Database
from firstlight.database.records import InstanceRecord
from firstlight.database.starts_repository import abandon_start, publish_route, withdraw_route
from firstlight.domain.lifecycle import InstanceState
from tests.integration.fleets import DIGEST, add_host, add_model, running


async def record(database: Database, instance_id: str) -> InstanceRecord:
    async with database.session() as session:
        return await instances_repository.get_instance(session, instance_id)


async def test_taken_back_published_again_and_given_up(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    plan = await running(database, "tiny")
    for epoch, is_taken in ((plan.epoch - 1, False), (plan.epoch, True), (plan.epoch, False)):
        async with database.transaction() as session:
            taken = await withdraw_route(session, instance_id=plan.instance_id, epoch=epoch)
        assert taken is is_taken
    found = await record(database, plan.instance_id)
    assert (found.state, found.endpoint) == (InstanceState.STARTING, None)

    async with database.transaction() as session:
        await publish_route(
            session,
            instance_id=plan.instance_id,
            epoch=plan.epoch,
            endpoint="127.0.0.1:4001",
            manifest_digest=DIGEST,
            size_bytes=plan.checkpoint.size_bytes,
        )
    found = await record(database, plan.instance_id)
    assert (found.state, found.endpoint) == (InstanceState.READY, "127.0.0.1:4001")

    async with database.transaction() as session:
        await withdraw_route(session, instance_id=plan.instance_id, epoch=plan.epoch)
        await abandon_start(session, AbandonInput(plan, "engine_gone", "its bytes did not come"))
    assert (await record(database, plan.instance_id)).state is InstanceState.FAILED
