"""Tables grow under code that runs: no revision takes away, or forbids, what the release before it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from alembic.script import ScriptDirectory

from firstlight.database import schema
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from tests.integration.conftest import execute, with_database
from tests.integration.schema_rules import Rule, read_rules, to_review
from tests.integration.schema_steps import Column, breaches, read_schema

# A revision that takes something away names the one since which no code uses it, two releases before.
CONTRACTS: dict[str, str] = {}
# Rules that a revision changed on tables that were there, and why code of the release before gets along.
REVIEWED: dict[str, dict[str, str]] = {
    "0002": {
        "ck_startup_observations_tier_is_known": "laxer: one more tier",
        "notify_fleet": "tells, and refuses nothing",
        "notify_fleet_update": "tells, and refuses nothing",
    },
    "0004": {
        "ck_decisions_kind_is_known": "laxer: one more kind",
        "ck_decisions_place_is_complete": "asks the same of the old kinds",
        "check_gpus_held": "the same where nothing is promised, and older code promises nothing",
        "hand_gpu_on": "does nothing where nothing is promised",
    },
    "0005": {"check_instances_step": "laxer: one more step"},
    "0007": {"ck_hosts_capacities_not_negative": "asks the same of the old columns"},
    "0009": {"notify_fleet": "tells, and refuses nothing"},
}
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
    broken, unsure = {}, {}
    schema.upgrade(empty_url, revisions()[0])
    before, rules_before = read_schema(empty_url), read_rules(empty_url)
    for revision in revisions()[1:]:
        schema.upgrade(empty_url, revision)
        after, rules_after = read_schema(empty_url), read_rules(empty_url)
        if (stumbles := breaches(before, after)) and revision not in CONTRACTS:
            broken[revision] = stumbles
        if found := to_review(rules_before, rules_after, before):
            unsure[revision] = found
        before, rules_before = after, rules_after
    assert broken == {}
    assert unsure == {revision: sorted(rules) for revision, rules in REVIEWED.items()}


def test_what_would_break_code_that_runs_is_noticed() -> None:
    plain = Column(type_name="text", may_be_null=True, has_default=False)
    filled = Column(type_name="text", may_be_null=False, has_default=True)
    needed = Column(type_name="text", may_be_null=False, has_default=False)
    number = Column(type_name="bigint", may_be_null=True, has_default=False)
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


def test_a_rule_that_forbids_more_or_does_other_things_asks_for_a_review() -> None:
    known = {("hosts", "name"): Column(type_name="text", may_be_null=True, has_default=False)}
    short = Rule(kind="check", definition="CHECK (length(name) < 9)", columns=frozenset({"name"}))
    alone = Rule(kind="unique", definition="UNIQUE (name)", columns=frozenset({"name"}))
    tells = Rule(kind="trigger", definition="AFTER INSERT ON hosts EXECUTE FUNCTION tell()")
    tell = Rule(kind="function", definition="FUNCTION tell()")
    red = Rule(kind="check", definition="CHECK (colour = 'red')", columns=frozenset({"colour"}))
    before = {("hosts", "alone"): alone, ("hosts", "tells"): tells, ("", "tell"): tell}
    for after in (
        {**before, ("hosts", "red"): red},
        {**before, ("new", "short"): short, ("new", "tells"): tells, ("", "new"): tell},
    ):
        assert to_review(before, after, known) == []
    assert to_review({**before, ("hosts", "short"): short}, before, known) == []
    for name, after in (
        ("short", {**before, ("hosts", "short"): short}),
        ("more", {**before, ("hosts", "more"): tells}),
        ("tell", {**before, ("", "tell"): Rule(kind="function", definition="FUNCTION tell() RAISE")}),
        ("alone", {key: rule for key, rule in before.items() if rule is not alone}),
        ("tells", {key: rule for key, rule in before.items() if rule is not tells}),
    ):
        assert to_review(before, after, known) == [name]
