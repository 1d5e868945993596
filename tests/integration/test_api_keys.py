"""Keys from the first to the last: made, limited, used, revoked, and every act written down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from api_model import ids_of
from api_stand import Stand, stand, until
from fake_engine import scripted
from sqlalchemy import text

from firstlight.database.connection import Database

MODEL = "tiny"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    """Its own client holds the key of the settings, which may do everything."""
    async with stand(database, tmp_path, api_keys="root", api_key="root") as made:
        yield made


async def made_key(api: Stand, **wish: object) -> tuple[str, str]:
    """Its id, and the key itself."""
    response = await api.http.post("/admin/v1/keys", json={"name": "someone", **wish})
    assert response.status_code == 201, response.text
    return response.json()["key_id"], response.json()["key"]


def with_key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(api: Stand, key: str) -> httpx.Response:
    return await api.http.post("/v1/chat/completions", json=HELLO, headers=with_key(key))


async def test_a_key_works_from_its_making_to_its_end_and_is_shown_once(api: Stand) -> None:
    key_id, key = await made_key(api)
    listed = (await api.http.get("/admin/v1/keys")).text
    assert key_id in listed and key not in listed and "hash" not in listed
    assert (await api.http.get("/v1/models", headers=with_key(key))).status_code == 200
    assert (await api.http.get("/admin/v1/keys", headers=with_key(key))).status_code == 403
    for _ in range(2):
        ended = await api.http.delete(f"/admin/v1/keys/{key_id}")
        assert ended.status_code == 200 and ended.json()["revoked_at_unix_s"] is not None
    assert (await api.http.get("/v1/models", headers=with_key(key))).status_code == 401
    assert (await api.http.delete("/admin/v1/keys/key-none")).status_code == 404


async def test_an_admin_key_may_make_keys_and_one_that_expires_does(api: Stand) -> None:
    _, admin = await made_key(api, scope="admin")
    wish = {"name": "brief", "expires_in_s": 0.5}
    response = await api.http.post("/admin/v1/keys", json=wish, headers=with_key(admin))
    brief = with_key(response.json()["key"])
    assert (await api.http.get("/v1/models", headers=brief)).status_code == 200
    await until(lambda: api.services.keys.find(response.json()["key"]) is None)
    assert (await api.http.get("/v1/models", headers=brief)).status_code == 401


async def test_ended_keys_keep_the_door_shut_over_a_restart(database: Database, tmp_path: Path) -> None:
    """On loopback, without keys in the settings: what was closed once stays closed."""
    async with stand(database, tmp_path / "one", hosts=0) as api:
        assert (await api.http.get("/v1/models")).status_code == 200
        key_id, key = await made_key(api, scope="admin")
        await made_key_that_is_over(api, key)
        ended = await api.http.delete(f"/admin/v1/keys/{key_id}", headers=with_key(key))
        assert ended.status_code == 200
        assert (await api.http.get("/v1/models")).status_code == 401
    for folder in ("two", "three"):
        async with stand(database, tmp_path / folder, hosts=0) as api:
            for sent in ({}, with_key(key)):
                assert (await api.http.get("/v1/models", headers=sent)).status_code == 401
            assert (await api.http.post("/admin/v1/keys", json={"name": "x"})).status_code == 401
        # An expired key that was never revoked counts as well.
        async with database.transaction() as session:
            await session.execute(text("DELETE FROM api_keys WHERE revoked_at IS NOT NULL"))


async def made_key_that_is_over(api: Stand, admin: str) -> None:
    wish = {"name": "over", "expires_in_s": 0.001}
    assert (await api.http.post("/admin/v1/keys", json=wish, headers=with_key(admin))).status_code == 201


async def test_wishes_that_make_no_sense_are_refused(api: Stand) -> None:
    for wrong in ({"scope": "root"}, {"max_concurrent": 0}, {"expires_in_s": -1}, {"colour": "red"}):
        response = await api.http.post("/admin/v1/keys", json={"name": "x", **wrong})
        assert response.status_code == 400, response.text


async def test_a_keys_limits_hold_for_it_alone_and_say_when_to_come_again(api: Stand) -> None:
    await api.warm(MODEL, token_at=scripted(ids_of("yes")))
    _, slow = await made_key(api, requests_per_minute=2)
    _, free = await made_key(api)
    first, second, third = [await ask(api, slow) for _ in range(3)]
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(third.headers["retry-after"]) <= 30
    # Looking costs nothing, and others are not held up.
    assert (await api.http.get("/v1/models", headers=with_key(slow))).status_code == 200
    assert (await ask(api, free)).status_code == 200


async def test_so_many_at_once_and_a_client_that_leaves_makes_room(api: Stand) -> None:
    engine = await api.warm(MODEL, token_at=scripted(ids_of("yes")))
    _, key = await made_key(api, max_concurrent=1)
    engine.gate.clear()
    held = asyncio.create_task(ask(api, key))
    await until(lambda: api.services.table.lane(MODEL).running == 1)
    assert (await ask(api, key)).status_code == 429
    held.cancel()
    await until(lambda: api.services.table.lane(MODEL).running == 0)
    engine.gate.set()
    assert (await ask(api, key)).status_code == 200


async def test_what_each_key_used_is_exact_and_outlives_the_process(
    database: Database, tmp_path: Path
) -> None:
    async with stand(database, tmp_path / "one", api_keys="root", api_key="root") as api:
        await api.warm(MODEL, token_at=scripted(ids_of("yes")))
        key_id, key = await made_key(api, requests_per_minute=4)
        answers = [await ask(api, key) for _ in range(5)]
        usages = [answer.json()["usage"] for answer in answers if answer.status_code == 200]
        assert len(usages) == 4
        seen = (await api.http.get("/admin/v1/usage", params={"key_id": key_id})).json()["usage"]
        await ask(api, "root")
    async with stand(database, tmp_path / "two", api_keys="root", api_key="root", hosts=0) as api:
        kept = (await api.http.get("/admin/v1/usage")).json()["usage"]
    of_key = [row for row in kept if row["key_id"] == key_id]
    assert sorted(map(str, of_key)) == sorted(map(str, seen))
    [used] = [row for row in of_key if row["model"] == MODEL]
    assert (used["requests"], sum(row["refused"] for row in of_key)) == (4, 1)
    assert used["prompt_tokens"] == sum(one["prompt_tokens"] for one in usages)
    assert used["completion_tokens"] == sum(one["completion_tokens"] for one in usages)
    [settings] = [row for row in kept if row["key_id"].startswith("settings/")]
    assert settings["requests"] == 1


async def test_every_act_is_written_down_with_who_and_what_and_no_secret(api: Stand) -> None:
    key_id, key = await made_key(api, scope="admin", name="ann")
    deploy = {"name": "qwen", "source": "hf://example/qwen"}
    await api.http.post("/admin/v1/models", json=deploy, headers=with_key(key))
    await api.http.get("/admin/v1/models", headers=with_key(key))
    refused = await api.http.delete("/admin/v1/models/none", headers=with_key(key))
    assert refused.status_code == 404
    response = await api.http.get("/admin/v1/audit", params={"actor": key_id})
    lines = response.json()["audit"]
    assert [(line["act"], line["subject"]) for line in lines] == [
        ("DELETE /admin/v1/models/none", "model/none"),
        ("DELETE /admin/v1/models/none", "model/none"),
        ("POST /admin/v1/models", "model"),
    ]
    assert lines[0]["detail"]["status"] == 404
    assert lines[2]["detail"]["body"] == deploy
    everything = (await api.http.get("/admin/v1/audit")).text
    assert key not in everything and "root" not in everything
    made = (await api.http.get("/admin/v1/audit", params={"subject": "key"})).json()["audit"]
    assert made[0]["actor"].startswith("settings/") and made[0]["detail"]["body"]["name"] == "ann"


SECRETS = ("hush", "scraper", "0a1b2c", "Cg4f", "hf_0123456789abcdefghijklmn")


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("https://scraper:hush@files.example/qwen", "https://***@files.example/qwen"),
        ("https://hush@files.example/qwen?Key-Pair-Id=Cg4f&Expires=1", "https://***@files.example/qwen?***"),
        ("s3://bucket/qwen?X-Amz-Signature=0a1b2c", "s3://bucket/qwen?***"),
        ("hf://example/qwen@main", "hf://example/qwen@main"),
    ],
)
async def test_a_source_is_written_down_without_its_secrets(api: Stand, source: str, kept: str) -> None:
    deploy = {"name": "qwen", "source": source}
    response = await api.http.post("/admin/v1/models", json=deploy)
    told = (await api.http.get("/admin/v1/audit")).json()["audit"]
    assert told and not [secret for secret in SECRETS if secret in json.dumps(told)], response.text
    [asked] = [line for line in told if line["act"] == "POST /admin/v1/models" and "body" in line["detail"]]
    assert asked["detail"]["body"] == {"name": "qwen", "source": kept}
    made = [line for line in told if line["act"] == "create"]
    assert [line["detail"]["source"] for line in made] == [kept][: len(made)]


async def test_a_long_body_is_named_by_its_length(api: Stand) -> None:
    body = json.dumps({"name": "x", "note": "hush" * 2000})
    await api.http.post("/admin/v1/keys", content=body)
    told = (await api.http.get("/admin/v1/audit", params={"subject": "key"})).json()["audit"]
    assert {f"{len(body)} bytes"} == {line["detail"]["body"] for line in told if "body" in line["detail"]}


async def test_what_cannot_be_written_down_is_not_done(api: Stand) -> None:
    before = (await api.http.get("/admin/v1/keys")).json()["keys"]
    async with api.database.transaction() as session:
        await session.execute(text("ALTER TABLE audit_log RENAME TO away"))
    response = await api.http.post("/admin/v1/keys", json={"name": "unseen"})
    assert response.status_code == 503, response.text
    assert (await api.http.get("/admin/v1/keys")).json()["keys"] == before


async def test_an_operator_makes_and_ends_a_key_by_the_command_line(api: Stand) -> None:
    def firstlight(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "FIRSTLIGHT_API_URL": api.url, "FIRSTLIGHT_API_KEY": "root"}
        return subprocess.run(
            [sys.executable, "-m", "firstlight.cli", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
        )

    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(firstlight, *arguments)

    made = await run("keys", "create", "--name", "front end", "--per-minute", "60", "--expires", "90d")
    key = made.stdout.strip()
    assert made.returncode == 0 and key.startswith("fl-") and "not shown again" in made.stderr
    assert (await api.http.get("/v1/models", headers=with_key(key))).status_code == 200
    [row] = json.loads((await run("keys", "list", "--json")).stdout)
    assert (row["name"], row["requests_per_minute"]) == ("front end", 60)
    assert (await run("keys", "revoke", row["key_id"])).returncode == 0
    assert (await api.http.get("/v1/models", headers=with_key(key))).status_code == 401
    told = await run("audit", "--subject", f"key/{row['key_id']}")
    assert f"DELETE /admin/v1/keys/{row['key_id']}" in told.stdout.replace("\n", ""), (
        told.stdout + told.stderr
    )
