"""Deploying, scaling and deleting models; keys and the audit log."""

from __future__ import annotations

import asyncio
import hashlib
import time

import pytest
from fleets import add_model, spec

from firstlight.database import keys_repository, models_repository
from firstlight.database.connection import Database
from firstlight.domain.errors import Conflict, InvalidInput, ModelBeingDeleted, ModelExists, UnknownModel
from firstlight.domain.lifecycle import ModelState


async def test_deploying_the_same_again_changes_nothing_and_other_settings_are_named(
    database: Database,
) -> None:
    async with database.transaction() as session:
        first = await models_repository.create_model(session, spec("tiny"))
    async with database.transaction() as session:
        # A second look at the source may estimate other sizes.
        again = await models_repository.create_model(session, spec("tiny", size_bytes=5))
    assert first[1] and not again[1] and first[0] == again[0]
    with pytest.raises(ModelExists, match=r"keep_alive_s 300\.0, not 5\.0") as refused:
        await add_model(database, "tiny", keep_alive_s=5.0)
    assert refused.value.fields["differing"] == ["keep_alive_s"]


async def test_ten_deployments_at_once_create_one_model(database: Database) -> None:
    async def create() -> bool:
        async with database.transaction() as session:
            return (await models_repository.create_model(session, spec("tiny")))[1]

    assert sorted(await asyncio.gather(*(create() for _ in range(10)))) == [False] * 9 + [True]


async def test_scaling_changes_what_is_given_and_refuses_nonsense(database: Database) -> None:
    await add_model(database, "tiny")
    async with database.transaction() as session:
        record = await models_repository.scale_model(session, "tiny", max_instances=3, keep_alive_s=1.5)
    assert (record.min_instances, record.max_instances, record.keep_alive_s) == (0, 3, 1.5)
    for wrong in ({"min_instances": 4}, {"keep_alive_s": -1.0}, {"max_concurrency": 0}):
        with pytest.raises(InvalidInput):
            async with database.transaction() as session:
                await models_repository.scale_model(session, "tiny", **wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownModel):
        async with database.transaction() as session:
            await models_repository.scale_model(session, "none", max_instances=3)


async def test_a_deleted_model_is_gone_and_its_name_is_free(database: Database) -> None:
    await add_model(database, "tiny")
    async with database.transaction() as session:
        with pytest.raises(ModelExists):
            await models_repository.finish_delete(session, "tiny")
    for _ in range(2):
        async with database.transaction() as session:
            assert await models_repository.begin_delete(session, "tiny", actor="ops") == []
    async with database.session() as session:
        assert (await models_repository.get_model(session, "tiny")).state is ModelState.DELETING
    with pytest.raises(ModelBeingDeleted):
        await add_model(database, "tiny")
    for _ in range(2):
        async with database.transaction() as session:
            assert await models_repository.finish_delete(session, "tiny")
    async with database.session() as session:
        assert await models_repository.list_models(session) == []
        acts = [
            (row.actor, row.act) for row in await keys_repository.list_audit(session, subject="model/tiny")
        ]
    assert acts == [("ops", "delete"), ("api", "create")]
    assert (await add_model(database, "tiny")).state is ModelState.ACTIVE


async def test_keys_count_until_they_expire_or_are_revoked(database: Database) -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(3)]
    async with database.transaction() as session:
        kept = await keys_repository.create_key(session, name="a", key_hash=hashes[0], scope="admin")
        await keys_repository.create_key(
            session, name="b", key_hash=hashes[1], scope="inference", expires_at_unix_s=time.time() - 1
        )
        revoked = await keys_repository.create_key(session, name="c", key_hash=hashes[2], scope="inference")
        assert await keys_repository.revoke_key(session, revoked.key_id)
        assert not await keys_repository.revoke_key(session, revoked.key_id)
    async with database.session() as session:
        [active] = await keys_repository.list_active_keys(session)
        assert (active.key_hash, active.scope) == (hashes[0], "admin")
        assert {row.key_id for row in await keys_repository.list_keys(session)} >= {
            kept.key_id,
            revoked.key_id,
        }
    async with database.transaction() as session:
        with pytest.raises(Conflict):
            await keys_repository.create_key(session, name="d", key_hash=hashes[0], scope="admin")
        with pytest.raises(InvalidInput):
            await keys_repository.create_key(session, name="d", key_hash=hashes[0], scope="root")
