"""Tables grow under code that runs: no revision takes away what the release before it uses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.script import ScriptDirectory

from firstlight.database import schema
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from tests.integration.conftest import execute, with_database
from tests.integration.schema_steps import Column, breaches, read_schema

# A revision that takes something away names the one since which no code uses it, two releases before.
CONTRACTS: dict[str, str] = {}
DATABASE = "step_by_step"


def revisions() -> list[str]:
    """Oldest first."""
    return [one.revision for one in ScriptDirectory.from_config(schema._config(None)).walk_revisions()][::-1]


@pytest.fixture
def empty_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    url = postgres_server.start()
    execute(url, f'CREATE DATABASE "{DATABASE}"')
    try:
        yield with_database(url, DATABASE)
    finally:
        execute(url, f'DROP DATABASE "{DATABASE}" WITH (FORCE)')


def test_every_revision_keeps_what_the_one_before_promised(empty_url: str) -> None:
    found = {}
    schema.upgrade(empty_url, revisions()[0])
    before = read_schema(empty_url)
    for revision in revisions()[1:]:
        schema.upgrade(empty_url, revision)
        after = read_schema(empty_url)
        if (stumbles := breaches(before, after)) and revision not in CONTRACTS:
            found[revision] = stumbles
        before = after
    assert found == {}


def test_what_would_break_code_that_runs_is_noticed() -> None:
    plain = Column(type_name="text/text", may_be_null=True, has_default=False)
    filled = Column(type_name="text/text", may_be_null=False, has_default=True)
    needed = Column(type_name="text/text", may_be_null=False, has_default=False)
    number = Column(type_name="bigint/int8", may_be_null=True, has_default=False)
    before = {("hosts", "name"): plain, ("hosts", "state"): filled}
    assert breaches(before, before | {("hosts", "colour"): filled, ("new", "id"): needed}) == []
    for after in (
        {("hosts", "name"): plain},
        before | {("hosts", "name"): number},
        before | {("hosts", "name"): needed},
        before | {("hosts", "state"): needed},
        before | {("hosts", "colour"): needed},
    ):
        assert len(breaches(before, after)) == 1, after
