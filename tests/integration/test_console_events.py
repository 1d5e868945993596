"""The console without a browser: its page's headers, and one stream of the fleet for all viewers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from api_stand import Stand, stand, until
from console_watching import EVENTS, Watching, watching
from fleets import placed

from api.auth import hash_of
from api.console import producer as producing
from api.console.files import load_page
from api.console.producer import Producer
from api.console.readings import Sections
from firstlight.database.connection import Database
from firstlight.database.keys_repository import create_key, list_keys, revoke_key
from firstlight.domain.errors import DatabaseUnavailable, Overloaded


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path, temporal_ui_url="http://temporal.example/") as made:
        yield made


async def test_a_viewer_sees_a_start_from_its_decision_to_its_requests(api: Stand) -> None:
    await api.deploy("tiny")
    async with watching(api) as seen:
        await seen.sees(lambda at: [host["host_id"] for host in at["hosts"]] == ["host-a", "host-b"])
        assert seen.sections["hello"]["temporal_ui_url"] == "http://temporal.example/"
        assert abs(seen.sections["hello"]["now_unix_s"] - time.time()) < 60
        assert [model["name"] for model in seen.sections["models"]] == ["tiny"]

        plan = await placed(api.database, "tiny")
        await seen.sees(lambda at: at["starts"] and at["starts"][0]["state"] == "starting")
        start = seen.sections["starts"][0]
        assert start["workflow_id"] == f"cold-start/tiny/{plan.instance_id}"
        assert start["predicted"]["total_s"] > 0 and start["actual"] is None
        assert "candidates" not in start

        engine = await api.run(plan)
        await seen.sees(lambda at: at["starts"][0]["state"] == at["instances"][0]["state"] == "ready")
        host = next(host for host in seen.sections["hosts"] if host["host_id"] == plan.host_id)
        assert host["gpus"][0]["model"] == "tiny"
        assert {tier["tier"]: len(tier["checkpoints"]) for tier in host["tiers"]} == {"dram": 1, "ssd": 1}

        engine.gate.clear()
        asking = asyncio.create_task(
            api.client.completions.create(
                model="tiny", prompt="x", max_tokens=3, extra_headers={"X-Request-Id": "mine"}
            )
        )
        await seen.sees(lambda at: at["load"]["requests"])
        [request] = seen.sections["load"]["requests"]
        assert (request["instance_id"], request["max_tokens"]) == (plan.instance_id, 3)
        assert request["request_id"].startswith("mine")
        assert seen.sections["load"]["models"] == {"tiny": {"running": 1, "waiting": 0}}
        engine.gate.set()
        await asking
        await seen.sees(lambda at: at["load"] == {"models": {}, "requests": [], "more_requests": 0})


async def test_all_viewers_share_one_reading_and_a_quiet_fleet_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SOONEST_S", "SETTLE_S", "LOOK_EVERY_S"):
        monkeypatch.setattr(producing, name, 0.01)
    reads, looks = 0, 0

    async def read() -> Sections:
        nonlocal reads
        reads += 1
        return {"hosts": reads if reads < 3 else "the same"}

    def look() -> Sections:
        nonlocal looks
        looks += 1
        return {"load": {}}

    one = Producer(read=read, look=look)
    running = asyncio.create_task(one.run())
    try:
        await asyncio.sleep(0.05)
        assert (reads, looks) == (0, 0), "nobody looks"
        async with one.viewer() as first, one.viewer() as second:
            assert await first.next() and await second.next()
            await until(lambda: looks >= 3)
            assert reads == 1, "nothing has changed, and two viewers are read for once"
            one.changed()
            await until(lambda: reads == 2)
            assert b"data: 2\n" in await first.next()
            for count in (3, 4, 5):
                one.changed()
                await until(lambda count=count: reads == count)  # type: ignore[misc]
            # The slow one has missed the second: it gets the latest, once.
            assert (await second.next()).count(b"event: hosts") == 1
            assert b"the same" in await first.next()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await first.next()
        # Who comes later is told what is so now, not what was.
        async with one.viewer() as late:
            assert b"the same" in await late.next() or b"the same" in await late.next()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_database_that_is_away_is_told_and_so_is_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOONEST_S", "SETTLE_S"):
        monkeypatch.setattr(producing, name, 0.01)
    is_away = True

    async def read() -> Sections:
        if is_away:
            raise DatabaseUnavailable("Postgres does not answer")
        return {"hosts": []}

    one = Producer(read=read, look=dict)
    running = asyncio.create_task(one.run())
    try:
        async with one.viewer() as viewer:
            assert b"Postgres does not answer" in await viewer.next()
            is_away = False
            one.changed()
            told = await viewer.next()
            while b"trouble" not in told:
                told += await viewer.next()
            assert b"event: hosts\ndata: []" in told and b"event: trouble\ndata: null" in told
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_stop_ends_open_streams_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producing, "VIEWERS_AT_MOST", 1)

    async def read() -> Sections:
        return {}

    one = Producer(read=read, look=dict)
    async with one.viewer() as viewer:
        with pytest.raises(Overloaded):
            async with one.viewer():
                pass
        one.close()
        async with asyncio.timeout(5):
            assert await viewer.next() == b""
        assert viewer.is_over
    with pytest.raises(Overloaded):
        async with one.viewer():
            pass


async def test_a_server_that_stops_does_not_wait_for_consoles(database: Database, tmp_path: Path) -> None:
    seen = Watching()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        async with stand(database, tmp_path, api_drain_s=60) as api:
            response = await http.send(http.build_request("GET", api.url + EVENTS), stream=True)
            reading = asyncio.create_task(seen.read(response))
            await seen.sees(lambda at: True)
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 30
        await reading
        assert seen.is_over


async def test_the_stream_wants_an_admin_key_and_ends_with_it(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.console.stream.ALIVE_EVERY_S", 0.1)
    async with database.transaction() as session:
        for key, scope in (("for-admin", "admin"), ("for-inference", "inference")):
            await create_key(session, name=key, key_hash=hash_of(key), scope=scope)
    async with stand(database, tmp_path, api_key="for-admin") as api:
        for key, status in ((None, 401), ("wrong", 401), ("for-inference", 403)):
            headers = {"authorization": f"Bearer {key}"} if key else {"authorization": ""}
            assert (await api.http.get(EVENTS, headers=headers)).status_code == status
        # The page itself is open: it asks for the key.
        assert (await api.http.get("/console", headers={"authorization": ""})).status_code == 200
        assert (await api.http.get("/console/../metrics", headers={"authorization": ""})).status_code == 401
        async with watching(api) as seen:
            await seen.sees(lambda at: True)
            async with database.transaction() as session:
                admin = next(key for key in await list_keys(session) if key.scope == "admin")
                await revoke_key(session, admin.key_id)
            await until(lambda: seen.is_over, within_s=20)


async def test_pages_of_other_sites_administer_nothing(api: Stand) -> None:
    body = {"name": "tiny", "source": "hf://example/tiny"}
    for site in ("cross-site", "same-site"):
        for method, path in (("POST", "/admin/v1/models"), ("GET", EVENTS)):
            refused = await api.http.request(method, path, json=body, headers={"sec-fetch-site": site})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
    assert (await api.http.get("/admin/v1/models")).json() == {"models": []}
    # A link from elsewhere may lead to the page, and clients that are no browsers say nothing.
    assert (await api.http.get("/console", headers={"sec-fetch-site": "cross-site"})).status_code == 200
    own = await api.http.post("/admin/v1/models", json=body, headers={"sec-fetch-site": "same-origin"})
    assert own.status_code == 201
    assert (await api.http.post("/admin/v1/models", json=body)).status_code == 200


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [value for name in ("src", "href") if (value := given.get(name))]
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "script" and "src" not in given:
            self.inline.append(tag)


async def test_the_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(api: Stand) -> None:
    page = await api.http.get("/console")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    links = Links()
    links.feed(page.text)
    assert links.inline == []
    assert links.found, "the page has scripts and a style sheet"
    for link in links.found:
        if link.startswith("#"):
            continue
        answer = await api.http.get(f"/{link}")
        assert (answer.status_code, answer.headers["content-security-policy"]) == (200, policy), link
        again = await api.http.get(f"/{link}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for missing in ("/console/absent.js", "/console/__init__.py", "/console/..%2Ffiles.py"):
        assert (await api.http.get(missing)).status_code == 404, missing


@pytest.mark.parametrize("name", sorted(load_page()))
def test_files_of_the_page_name_no_other_site_and_make_no_markup_of_text(name: str) -> None:
    text = load_page()[name].body.decode()
    assert set(re.findall(r"https?://[^\s'\"`)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text)


@pytest.mark.parametrize("name", sorted(name for name in load_page() if name.endswith(".js")))
def test_scripts_import_only_what_is_there(name: str) -> None:
    page = load_page()
    for found in re.findall(r"from '\./([^']+)'", page[name].body.decode()):
        assert found in page
