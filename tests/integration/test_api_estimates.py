"""Explanations and errors of estimates, as the API tells them and the command line shows them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_stand import Stand, stand
from fleets import placed, plan
from sqlalchemy import text
from typer.testing import CliRunner

from api.admin import estimates as shapes
from firstlight.cli.main import app
from firstlight.contracts.instances import FinishInput
from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import FinishMigrationInput, MoveReceipt, RoundRow
from firstlight.contracts.starts import PhaseSeconds, RecordStartInput
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.hosts_repository import set_placements
from firstlight.database.instances_repository import finish_instance
from firstlight.database.migrations_repository import finish_migration, plan_migration
from firstlight.database.starts_repository import record_start


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path) as made:
        yield made


# Any: JSON of an answer.
async def get(api: Stand, path: str, **params: object) -> Any:
    response = await api.http.get(path, params={name: str(value) for name, value in params.items()})
    assert response.status_code == 200, response.text
    return response.json()


async def cli(api: Stand, *words: str) -> str:
    """What the command prints; it is a client of the API like any other."""
    result = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--api", api.url])
    assert result.exit_code == 0, result.output
    return result.stdout


async def put_on_ssd(api: Stand, host_id: str, checkpoint_id: str) -> None:
    async with api.database.transaction() as session:
        await set_placements(
            session,
            host_id=host_id,
            checkpoint_id=checkpoint_id,
            ssd=True,
            dram=False,
            size_bytes=1_000_000,
            manifest_digest="",
        )


async def test_every_host_is_explained_and_adds_up(api: Stand) -> None:
    await api.deploy("tiny")
    checkpoint_id = api.services.catalog.known("tiny").checkpoint_id  # type: ignore[union-attr]
    await put_on_ssd(api, "host-b", checkpoint_id)
    found = await get(api, "/admin/v1/models/tiny/explain")
    shapes.ExplanationAnswer.model_validate(found)
    decision = found["decision"]
    assert (decision["kind"], decision["host_id"]) == ("place", "host-b")
    by_host = {one["host_id"]: one for one in found["candidates"]}
    assert set(by_host) == {"host-a", "host-b"}
    for one in by_host.values():
        way = one["ways"][0]
        crossed = [edge for edge in way["edges"] if not edge["is_beside"]]
        total_s = sum(edge["queue_s"] + edge["transfer_s"] for edge in crossed)
        total_s += way["attach_s"] + way["control_s"]
        assert one["estimate"]["total_s"] == pytest.approx(total_s)
    assert [way["tier"] for way in by_host["host-b"]["ways"]] == ["ssd"]
    assert [way["tier"] for way in by_host["host-a"]["ways"]] == ["remote"]
    assert decision["ready_in_s"] == by_host["host-b"]["estimate"]["total_s"]


async def test_explaining_writes_nothing(api: Stand) -> None:
    await api.deploy("tiny")
    before = await counts(api.database)
    for _ in range(3):
        await get(api, "/admin/v1/models/tiny/explain")
    assert await counts(api.database) == before
    # Asked for really, it goes where it was said to go.
    said = (await get(api, "/admin/v1/models/tiny/explain"))["decision"]
    plan = await placed(api.database, "tiny")
    assert (plan.host_id, plan.gpu_indices) == (said["host_id"], said["gpu_indices"])
    assert plan.estimate.total_s == pytest.approx(said["estimate"]["total_s"])


async def counts(database: Database) -> list[int]:
    tables = ("decisions", "instances", "reservations", "audit_log")
    async with database.session() as session:
        return [(await session.execute(text(f"SELECT count(*) FROM {name}"))).scalar_one() for name in tables]


async def test_what_waits_or_cannot_be_is_told_with_all_hosts(api: Stand) -> None:
    await api.deploy("tiny")
    plan = await placed(api.database, "tiny")
    waiting = await get(api, "/admin/v1/models/tiny/explain")
    assert waiting["decision"]["kind"] == "wait"
    assert waiting["decision"]["instance_id"] == plan.instance_id
    assert waiting["starting"] == [plan.instance_id] and len(waiting["candidates"]) == 2
    await api.deploy("large", gpu_count=4)
    refused = await get(api, "/admin/v1/models/large/explain")
    assert refused["decision"]["kind"] == "reject" and refused["decision"]["retry_after_s"] > 0
    assert all(one["estimate"] is None and one["reason"] for one in refused["candidates"])
    assert all(one["ways"] == [] for one in refused["candidates"])
    assert (await api.http.get("/admin/v1/models/absent/explain")).status_code == 404


async def test_the_command_line_explains(api: Stand) -> None:
    await api.deploy("tiny")
    printed = await cli(api, "explain", "tiny")
    for expected in (
        "host-a",
        "host-b",
        "chosen",
        "possible",
        "attach",
        "control",
        "ready",
        "from its source",
    ):
        assert expected in printed, printed
    assert "not learned yet" in printed and "as probed or assumed" in printed
    assert "host-b" not in await cli(api, "explain", "tiny", "--host", "host-a")
    plan = await placed(api.database, "tiny")
    assert plan.instance_id in await cli(api, "explain", "tiny")


async def test_who_would_give_way_is_named_and_asked(database: Database, tmp_path: Path) -> None:
    async with stand(database, tmp_path, hosts=1) as api:
        engine = await api.warm("old")
        await api.deploy("new")
        idle = EngineLoad(instance_id=engine.instance_id, requests=0, tokens=0, idle_s=60.0)
        async with database.transaction() as session:
            await write_loads(session, [idle])
        engine.idle_s = 60.0
        decision = (await get(api, "/admin/v1/models/new/explain"))["decision"]
        assert decision["kind"] == "migrate", decision
        [victim] = decision["victims"]
        assert (victim["instance_id"], victim["action"]) == (engine.instance_id, "evict")
        assert f"{engine.instance_id} of old ends: it is idle" in await cli(api, "explain", "new")
        # What its host wrote of it is older than what it says itself.
        engine.running = 1
        assert (await get(api, "/admin/v1/models/new/explain"))["decision"]["kind"] in ("wait", "reject")


async def start(api: Stand, *, actual_s: float, plans_tried: int = 1) -> float:
    """One start of `tiny` that took `actual_s`; what it was predicted to take."""
    plan = await placed(api.database, "tiny")
    phases = PhaseSeconds(
        download_s=actual_s - 0.1, attach_s=0.06, control_s=0.04, total_s=actual_s, tier="remote"
    )
    async with api.database.transaction() as session:
        await record_start(session, RecordStartInput(plan, phases, plans_tried=plans_tried))
        await finish_instance(session, FinishInput(plan.instance_id, plan.epoch, "stopped", "test"))
    return plan.estimate.total_s


async def test_errors_of_starts_are_a_table(api: Stand) -> None:
    assert (await get(api, "/admin/v1/estimates")) == {"starts": [], "overall": None, "moves": []}
    assert "nothing has been started yet" in await cli(api, "estimates")
    await api.deploy("tiny", max_instances=9)
    actual = [2.0, 2.2, 1.8, 2.0, 2.1]
    predicted = [await start(api, actual_s=seconds) for seconds in actual]
    # Planned anew after a failure: not what an estimate is for.
    await start(api, actual_s=500.0, plans_tried=2)
    found = await get(api, "/admin/v1/estimates")
    shapes.EstimateErrorsAnswer.model_validate(found)
    [row] = found["starts"]
    assert (row["model"], row["tier"], row["errors"]["starts"]) == ("tiny", "remote", 5)
    assert found["overall"] == row["errors"]
    errors = sorted(abs(a - p) for a, p in zip(actual, predicted, strict=True))
    assert row["errors"]["error_median_s"] == pytest.approx(errors[2])
    assert row["errors"]["actual_s"] == 2.0
    last = (await get(api, "/admin/v1/estimates", last=2))["overall"]
    assert last["starts"] == 2
    # The last ones were foretold from the first ones.
    assert last["error_p90"] < 0.15
    assert (await get(api, "/admin/v1/estimates", model="other"))["starts"] == []
    printed = await cli(api, "estimates")
    assert "tiny" in printed and "remote" in printed and "all" in printed
    assert (await api.http.get("/admin/v1/estimates", params={"last": 0})).status_code == 400


async def test_the_error_of_every_start_is_a_metric(api: Stand) -> None:
    await api.deploy("tiny")
    planned = await plan(api.database, "tiny")
    assert planned.plan is not None
    api.services.ledger.planned("tiny", planned)
    predicted_s = planned.plan.estimate.total_s
    phases = PhaseSeconds(download_s=predicted_s * 2, total_s=predicted_s * 2, tier="remote")
    async with api.database.transaction() as session:
        await record_start(session, RecordStartInput(planned.plan, phases))
    await api.run(planned.plan)
    async with asyncio.timeout(30):
        while not (seen := await sums(api)):  # noqa: ASYNC110 - asked of the API, as Prometheus would
            await asyncio.sleep(0.05)
    assert seen["firstlight_estimate_error_ratio"] == pytest.approx(0.5)
    assert seen["firstlight_estimate_error_seconds"] == pytest.approx(predicted_s)


async def sums(api: Stand) -> dict[str, float]:
    """Of the histograms of errors, once a start has been counted in both."""
    text = (await api.http.get("/metrics")).text
    found = dict(
        re.findall(r'^(firstlight_estimate_error_\w+)_sum{tier="remote"} (\S+)$', text, flags=re.MULTILINE)
    )
    return {name: float(total) for name, total in found.items()} if len(found) == 2 else {}


async def test_errors_of_moves_stand_beside_them(api: Stand) -> None:
    for host in ("host-a", "host-b"):
        await api.add_host(host, gpu_count=2)
    engine = await api.warm("tiny", max_instances=3)
    for tokens in (100, 400, 900, 1600, 300):
        planned = await plan_migration(
            api.database,
            instance_id=engine.instance_id,
            to_host=None,
            reason="test",
            transfer="exact",
            now_unix_s=0.0,
        )
        assert planned.destination is not None
        seconds = 0.1 + 0.001 * tokens
        move = MoveReceipt(
            rounds=[RoundRow(1, 1, tokens, 10, seconds)],
            handed_over=1,
            elapsed_s=seconds,
            observations=[[tokens, seconds]],
        )
        async with api.database.transaction() as session:
            await finish_migration(
                session, FinishMigrationInput(planned.migration_id, "completed", start_s=0.5, move=move)
            )
            target = planned.destination
            await finish_instance(session, FinishInput(target.instance_id, target.epoch, "stopped", "test"))
    [row] = (await get(api, "/admin/v1/estimates"))["moves"]
    assert (row["model"], row["host_class"], row["moves"]) == ("tiny", "cpu-2c", 5)
    assert row["seconds_per_token"] == pytest.approx(0.001, rel=0.05)
    [newest, *_] = (await get(api, "/admin/v1/migrations"))["migrations"]
    assert newest["predicted_move_s"] == pytest.approx(newest["move_s"], rel=0.15)
    assert newest["predicted_start_s"] > 0
    printed = await cli(api, "estimates")
    assert "ms a token" in printed
    assert "400 ms (4" in await cli(api, "migrations")
