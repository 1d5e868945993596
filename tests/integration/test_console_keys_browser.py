"""The console in a real Chromium, before an API that asks for keys: who gets in, and what stays behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest_asyncio
from api_model import text_files
from api_stand import Stand, stand
from chromium import Page
from console_page import fill, has, is_clear, live, looking, needs_chromium, press
from fake_host import working_cluster

from firstlight.database.connection import Database
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import list_instances
from firstlight.database.keys_repository import list_audit
from firstlight.database.migrations_repository import list_migrations
from firstlight.launcher.embedded.temporal import EmbeddedTemporal

pytestmark = needs_chromium
FIRST_KEY = "the-first-key"
# Everywhere a page can leave something, but the one place that is the tab's own.
KEPT_ELSEWHERE = """(async () => [
    localStorage.length, document.cookie, history.state, window.name, document.referrer,
    await indexedDB.databases(), await caches.keys(), await navigator.serviceWorker.getRegistrations(),
])()"""


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    async with looking() as opened:
        yield opened


@asynccontextmanager
async def locked(database: Database, folder: Path, **more: object) -> AsyncIterator[Stand]:
    async with stand(database, folder, api_keys=FIRST_KEY, api_key=FIRST_KEY, **more) as api:  # type: ignore[arg-type]
        yield api


async def make_key(api: Stand, scope: str) -> tuple[str, str]:
    """Its id, and what its holder types."""
    answer = await api.http.post("/admin/v1/keys", json={"name": scope, "scope": scope})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    return made["key_id"], made["key"]


async def give(page: Page, key: str, *, by: str) -> None:
    """Type a key as one is asked to; `by` is the button that asks."""
    await press(page, by)
    await page.until("document.activeElement.id === 'field-key'")
    await fill(page, "key", key)
    await page.press("Enter")


async def has_left_nothing(page: Page, *keys: str) -> None:
    """The keys are in no address, in no file of the browser's that outlives the tab, and not on the page."""
    assert await page.run(KEPT_ELSEWHERE) == [0, "", None, "", "", [], [], []]
    shown = await page.run("document.documentElement.outerHTML + location.href + document.title")
    typed = await page.run("[...document.querySelectorAll('input')].map(e => e.value)")
    for key in keys:
        assert key not in shown and key not in typed
        assert not [url for url in page.asked if key in url]


async def test_without_an_admin_key_nothing_is_shown_and_it_says_why(
    database: Database, tmp_path: Path, page: Page
) -> None:
    async with locked(database, tmp_path) as api:
        _, for_inference = await make_key(api, "inference")
        await page.open(f"{api.url}/console")
        await page.until(has("h1", "needs an admin key") + " && " + has("#link", "key needed"))
        await is_clear(page)
        # The header's button is there already; what it asks for is refused, and the dialog says so.
        await press(page, "Deploy a model")
        await fill(page, "name", "tiny")
        await fill(page, "source", "hf://example/tiny")
        await page.press("Enter")
        await page.until(has("#dialog-failure", "an API key is needed"))
        await page.press("Escape")

        await give(page, "wrong", by="Give a key")
        await page.until(has("h1", "does not open") + " && " + has("main p", "not known"))
        await is_clear(page)
        # Nothing that can be sent: said at once, instead of an API that seems to be away.
        await give(page, "fl-abc…", by="Give another key")
        await page.until(has("#dialog-failure", "no key has"))
        await page.press("Escape")
        await give(page, for_inference, by="Give another key")
        await page.until(has("main p", "for inference, not for administration"))
        assert await page.run(has("h1", "does not open") + " && !document.querySelector('#hosts')")

        await give(page, FIRST_KEY, by="Give another key")
        await page.until(has("#link", "live") + " && " + has("#hosts", "host-a"))
        # Temporal is away here: said, and no more than said.
        await page.until(has("#trouble", "Temporal"))
        await page.run("location.reload()")
        await page.until(has("#link", "live"))
        assert await page.run("Object.entries(sessionStorage)") == [["firstlight.key", FIRST_KEY]]
        await has_left_nothing(page, "wrong", for_inference, FIRST_KEY)

        await give(page, "", by="Change key")
        await page.until(has("h1", "needs an admin key"))
        assert await page.run("sessionStorage.length") == 0
        assert not await page.run("document.querySelector('#hosts')")
        async with api.database.session() as session:
            [line] = await list_audit(session)
        # What was refused is no act: only the key that was made is one.
        assert line.act == "POST /admin/v1/keys"


async def test_with_an_admin_key_one_deploys_moves_and_drains_until_it_is_revoked(
    database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal, page: Page
) -> None:
    address = temporal_server.address
    async with (
        locked(database, tmp_path, temporal_address=address, start_timeout_s=60) as api,
        working_cluster(api, address, "host-a", "host-b"),
    ):
        key_id, key = await make_key(api, "admin")
        await page.open(f"{api.url}/console")
        await page.until(has("h1", "needs an admin key"))
        await give(page, key, by="Give a key")
        await page.until(has("#hosts", "host-b"))

        await press(page, "Deploy a model")
        await fill(page, "name", "tiny")
        await fill(page, "source", "hf://example/tiny")
        await page.press("Enter")
        await page.until(has("h1", "tiny") + " && !document.getElementById('dialog').open")
        deployed = api.services.catalog.known("tiny")
        assert deployed is not None
        api.store.files[deployed.checkpoint_id] = text_files()
        await press(page, "Start it now")
        await page.until(has("#history .fall:not([data-active]) .pill", "ready"))

        await live(page, api.url)
        await page.until(has("#instances tbody", "tiny"))
        async with api.database.session() as session:
            [instance] = await list_instances(session)
        source = instance.host_id
        other = "host-b" if source == "host-a" else "host-a"
        await press(page, f"Move tiny {instance.instance_id} to another host")
        await page.until("document.activeElement.id === 'field-to'")
        await press(page, "Move")
        await page.until(has(".fall[data-kind=migration] .pill", "completed"), within_s=60)
        await press(page, f"Drain {source}")
        await page.until(has("#dialog", f"Drain {source}?"))
        await press(page, "Drain")
        # The host's own state: the instance that was moved may be draining there as well.
        await page.until(has(f"[data-key=host-{source}] .card-head .pill", "draining"))
        async with api.database.session() as session:
            [moved] = await list_migrations(session)
            states = {host.host_id: host.state for host in await list_hosts(session)}
            acts = [line.subject for line in await list_audit(session, actor=key_id)]
        assert (moved.state, moved.destination_host_id) == ("completed", other)
        assert states == {source: "draining", other: "ready"}
        # Newest first, each under the key that was typed.
        assert acts == [
            f"host/{source}/drain",
            f"instance/{instance.instance_id}/migrate",
            "model/tiny/start",
            "model",
        ]
        await has_left_nothing(page, key)

        # Whoever still looks is shown out, and what was shown goes with it.
        assert (await api.http.delete(f"/admin/v1/keys/{key_id}")).status_code == 200
        await page.until(has("h1", "does not open") + " && " + has("main p", "or no longer"))
        assert not await page.run("document.querySelector('#hosts')")
