"""The schema on a real Postgres: there and back, equal to the tables, and as strict as the domain."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from enum import StrEnum

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from conftest import execute, fresh_database, with_database
from fleets import add_host, add_model, placed, running
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import IntegrityError

from firstlight.database import schema, triggers
from firstlight.database.connection import Database
from firstlight.database.tables import Base
from firstlight.domain.errors import DatabaseUnavailable, InvalidSettings, StorageError
from firstlight.domain.lifecycle import HOST_STEPS, INSTANCE_STEPS, MODEL_STEPS, PLACEMENT_STEPS


@pytest.mark.filterwarnings("ignore:Computed default")
def test_the_migrations_make_exactly_the_tables_of_the_code(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_up_down_and_up_again_leaves_nothing_and_then_everything(database_url: str) -> None:
    assert schema.current_revision(database_url) == schema.head_revision()
    before = objects(database_url)
    schema.downgrade(database_url, "base")
    assert schema.current_revision(database_url) is None
    assert objects(database_url) == {"alembic_version"}
    schema.upgrade(database_url)
    assert objects(database_url) == before


def test_many_roles_that_migrate_at_once_do_it_once(migrated_template: str) -> None:
    execute(migrated_template, "CREATE DATABASE together")
    url = with_database(migrated_template, "together")
    failures: list[BaseException] = []

    def migrate() -> None:
        try:
            schema.upgrade(url)
        except BaseException as error:  # noqa: BLE001  carried to the assertion below
            failures.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert schema.current_revision(url) == schema.head_revision()
    execute(migrated_template, "DROP DATABASE together WITH (FORCE)")


def test_a_database_of_another_release_is_refused(database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidSettings, match="does not belong to this release"):
        schema.upgrade(database_url)


def test_a_database_that_is_away_is_said_to_be(tmp_path: object) -> None:
    with pytest.raises(DatabaseUnavailable):
        schema.upgrade(f"postgresql+psycopg://postgres@/none?host={tmp_path}")


def test_the_triggers_of_the_database_are_those_rendered_from_the_domain(migrated_template: str) -> None:
    """A life cycle changed in the code without a migration fails here."""
    with fresh_database(migrated_template) as migrated, fresh_database(migrated_template) as rendered:
        for table in reversed(triggers.FUNCTIONS):
            execute(rendered, f"DROP FUNCTION {table}() CASCADE")
        for statement in triggers.STATEMENTS:
            execute(rendered, statement)
        assert definitions(migrated) == definitions(rendered)


@pytest.mark.parametrize(
    ("table", "key", "steps"),
    [
        ("hosts", "host_id", HOST_STEPS),
        ("instances", "instance_id", INSTANCE_STEPS),
        ("models", "name", MODEL_STEPS),
        ("placements", "tier", PLACEMENT_STEPS),
    ],
)
async def test_every_step_is_allowed_exactly_where_the_domain_allows_it(
    database: Database, table: str, key: str, steps: Mapping[StrEnum, frozenset[StrEnum]]
) -> None:
    await add_host(database, "host-a")
    await add_model(database, "tiny")
    start = await running(database, "tiny")
    keys = {"hosts": "host-a", "instances": start.instance_id, "models": "tiny", "placements": "ssd"}
    # Only the life cycle is on trial: what else a state asks of its row is set aside.
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM reservations"))
        await session.execute(text("SET LOCAL session_replication_role = replica"))
        for constraint in (
            "lost_has_a_time",
            "ended_has_a_time",
            "failed_says_why",
            "starting_has_no_endpoint",
        ):
            for name in ("hosts", "instances"):
                await session.execute(
                    text(f"ALTER TABLE {name} DROP CONSTRAINT IF EXISTS ck_{name}_{constraint}")
                )
        await session.execute(text("DROP TRIGGER check_gpus_held ON instances"))
        await session.execute(text("DROP TRIGGER check_gpus_held ON reservations"))
    for old in steps:
        for new in steps:
            async with database.transaction() as session:
                await session.execute(text("SET LOCAL session_replication_role = replica"))
                await session.execute(
                    text(f"UPDATE {table} SET state = :old WHERE {key} = :key"),
                    {"old": old, "key": keys[table]},
                )
            assert await allows(database, table, key, keys[table], new) == (
                new == old or new in steps[old]
            ), (old, new)


OWNED = "fk_reservations_instance_id_host_id_epoch_instance_is_live"


async def test_rows_that_break_a_promise_are_refused(database: Database) -> None:
    await add_host(database, "host-a", gpu_count=2)
    await add_model(database, "tiny")
    await add_model(database, "other")
    start, other = await running(database, "tiny"), await placed(database, "other")
    for statement, constraint in (
        # A GPU held twice.
        (
            f"UPDATE reservations SET gpu_index = 0 WHERE instance_id = '{other.instance_id}'",
            "pk_reservations",
        ),
        # A reservation of an instance that has ended.
        (
            "UPDATE instances SET state = 'stopped', ended_at = now() "
            f"WHERE instance_id = '{start.instance_id}'",
            OWNED,
        ),
        # A reservation under another epoch than its instance's.
        ("UPDATE instances SET epoch = epoch + 100", OWNED),
        # A live instance that holds no GPU.
        (f"DELETE FROM reservations WHERE instance_id = '{start.instance_id}'", "ck_reservations_gpus_held"),
        # An instance that serves nowhere.
        ("UPDATE instances SET endpoint = NULL WHERE state = 'ready'", "ck_instances_served_has_endpoint"),
        # A model gone while an instance of it runs.
        ("DELETE FROM models WHERE name = 'tiny'", "ck_instances_live_has_a_model"),
        ("UPDATE instances SET state = 'sleeping'", "ck_instances_step"),
        ("UPDATE models SET max_instances = -1", "ck_models_instance_bounds"),
    ):
        with pytest.raises(StorageError) as refused:
            async with database.transaction() as session:
                await session.execute(text(statement))
        assert refused.value.fields["constraint"] == constraint, statement


async def allows(database: Database, table: str, key: str, value: str, new: StrEnum) -> bool:
    async with database.session() as session:
        try:
            await session.execute(
                text(f"UPDATE {table} SET state = :new WHERE {key} = :key"), {"new": new, "key": value}
            )
        except IntegrityError:
            return False
        finally:
            await session.rollback()
    return True


def objects(url: str) -> set[str]:
    """Names of all tables, indexes, sequences, functions and triggers."""
    return {
        row[0]
        for row in rows(
            url,
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relname <> 'alembic_version_pkc' "
            "UNION SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
            "UNION SELECT tgrelid::regclass || '.' || tgname FROM pg_trigger WHERE NOT tgisinternal",
        )
    }


def definitions(url: str) -> set[str]:
    return {
        row[0]
        for row in rows(
            url,
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace "
            "UNION SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
        )
    }


def rows(url: str, query: str) -> list[tuple[str, ...]]:
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo) as connection:
        return connection.execute(query).fetchall()


async def test_a_schema_can_be_migrated_from_within_an_event_loop(database_url: str) -> None:
    await asyncio.to_thread(schema.upgrade, database_url)
