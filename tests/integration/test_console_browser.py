"""The console in a real headless Chromium, against the real API, Postgres and Temporal; hosts by contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest_asyncio
from api_model import text_files
from api_stand import Stand, stand, until
from chromium import Page
from console_page import fill, has, is_clear, live, looking, needs_chromium, press
from fake_host import FakeHost, working_cluster
from fleets import placed

from firstlight.contracts.progress import StartProgress
from firstlight.contracts.starts import AbandonInput
from firstlight.database.connection import Database
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import get_instance
from firstlight.database.migrations_repository import list_migrations
from firstlight.database.progress_news import tell_progress
from firstlight.database.starts_repository import abandon_start
from firstlight.launcher.embedded.temporal import EmbeddedTemporal

pytestmark = needs_chromium
UI = "http://temporal.example:8233/"


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    async with looking() as opened:
        yield opened


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal) -> AsyncIterator[Stand]:
    address = temporal_server.address
    async with stand(
        database, tmp_path, temporal_address=address, temporal_ui_url=UI, start_timeout_s=60
    ) as made:
        yield made


@pytest_asyncio.fixture
async def host(api: Stand, temporal_server: EmbeddedTemporal) -> AsyncIterator[FakeHost]:
    async with working_cluster(api, temporal_server.address, "host-a", "host-b") as fake:
        yield fake


async def test_a_model_is_deployed_started_watched_and_moved_by_keyboard_alone(
    api: Stand, host: FakeHost, page: Page
) -> None:
    await live(page, api.url)
    await page.until(has("#hosts", "host-b"))
    assert await page.run(has("#activity .empty")) and await page.run(has("#instances .empty"))
    assert await page.run(has(".tier", "0 B of 107 GB"))
    await is_clear(page)

    # The first thing a keyboard reaches leads past the rest.
    await page.run("document.activeElement.blur()")
    await page.press("Tab")
    assert await page.run("document.activeElement.className") == "skip"
    await page.press("Enter")
    assert await page.run("document.activeElement.id") == "main"

    await press(page, "Deploy a model")
    await page.until("document.activeElement.id === 'field-name'")
    await page.type("../etc")
    await fill(page, "source", "hf://example/tiny")
    await page.press("Enter")
    await page.until(has("#dialog-failure", "../etc"))
    await page.run("document.getElementById('field-name').value = ''")
    await page.run("document.getElementById('field-name').focus()")
    await page.type("tiny")
    await page.press("Enter")
    await page.until(has("h1", "tiny") + " && !document.getElementById('dialog').open")
    assert await page.run("document.activeElement.id") == "main"
    await page.until(has("#history .empty", "never been started"))
    deployed = api.services.catalog.known("tiny")
    assert deployed is not None
    api.store.files[deployed.checkpoint_id] = text_files()

    host.gate.clear()
    await press(page, "Start it now")
    await page.until(has("#history .fall[data-active]", "so far"))
    assert await page.run("document.querySelector('#history .track.predicted .phase').offsetWidth > 0")
    # Between two looks the bar of what goes on has grown.
    length = "document.querySelector('#history .track-total ~ .track-total').textContent"
    before = await page.run(length)
    await page.until(f"{length} !== {before!r}")
    [instance_id] = host.started
    await tell_of_start(api, instance_id, bytes_done=310_000_000)
    await page.until(has("#history .fall[data-active] .doing", "loads 310 MB of 538 MB"))
    # What has ended in its own colour, what goes on striped, what is to come pale: in this order.
    bars = "[...document.querySelectorAll('#history .track.actual .phase')]"
    classes = f"{bars}.map(e => e.className + ' ' + e.dataset.phase)"
    await page.until(f"{classes}.join().includes('phase queue,phase live load,phase rest attach')")
    assert await page.run(f"{bars}.find(e => e.matches('.live')).offsetWidth > 0")
    await is_clear(page)
    host.gate.set()
    await page.until(has("#history .fall:not([data-active]) .pill", "ready"))
    await page.until("document.querySelectorAll('#history .track.actual .phase').length")
    href = await page.run("document.querySelector('#history .fall-link a').href")
    assert href == f"{UI}namespaces/default/workflows/cold-start%2Ftiny%2F{instance_id}"
    await press(page, f"Phases and figures of start-{instance_id}")
    await page.until(has("#history .phases", "load"))
    await is_clear(page)

    await page.run("location.hash = '#/'")
    await page.until(has(".gpu", "tiny") + " && " + has("#instances tbody", instance_id))
    api.engines[instance_id].gate.clear()
    asking = asyncio.create_task(
        api.client.completions.create(
            model="tiny", prompt="x", max_tokens=3, extra_headers={"X-Request-Id": "mine"}
        )
    )
    await page.until(has(".requests", "0 of at most 3 tokens"))
    await is_clear(page)
    api.engines[instance_id].gate.set()
    await asking
    await page.until("!document.querySelector('.requests')")

    # A large fleet is many Tabs long: a figure at the top leads to what it counts.
    await page.focus_on("e.dataset.to === 'activity'")
    await page.press("Enter")
    assert await page.run("document.activeElement.id") == "activity-title"
    await page.press("Tab")
    assert await page.run("Boolean(document.activeElement.closest('#activity'))")

    source = await page.run("document.querySelector('#instances tbody td:nth-child(3)').firstChild.data")
    await press(page, f"Move tiny {instance_id} to another host")
    await page.until("document.activeElement.id === 'field-to'")
    # Where it is ready soonest, as the field says by itself: there is no third host.
    other = "host-b" if source == "host-a" else "host-a"
    await press(page, "Move")
    await page.until(has(".fall[data-kind=migration] .pill", "completed"), within_s=60)
    assert await page.run(has(".fall[data-kind=migration]", f"{source} → {other}"))
    async with api.database.session() as session:
        [moved] = await list_migrations(session)
    assert (moved.state, moved.destination_host_id) == ("completed", other)
    # All of it came from the server itself: it works where nothing else can be reached.
    assert {urlsplit(url).netloc for url in page.asked} - {""} == {urlsplit(api.url).netloc}


async def tell_of_start(api: Stand, instance_id: str, *, bytes_done: int) -> None:
    """As its host would: it has waited, and loads."""
    async with api.database.transaction() as session:
        epoch = (await get_instance(session, instance_id)).epoch
        word = StartProgress(
            instance_id=instance_id,
            epoch=epoch,
            phase="load",
            phase_s=0.05,
            bytes_done=bytes_done,
            bytes_total=538_000_000,
            done={"queue": 0.05},
        )
        await tell_progress(session, [word])


async def test_a_host_is_drained_and_taken_back(api: Stand, host: FakeHost, page: Page) -> None:
    await live(page, api.url)

    async def state() -> str:
        async with api.database.session() as session:
            return str((await list_hosts(session))[0].state)

    await press(page, "Drain host-a")
    await page.until(has("#dialog", "Drain host-a?"))
    await page.press("Escape")
    await page.until("!document.getElementById('dialog').open")
    # Nothing was done, and the keyboard is where it was.
    assert await page.run("document.activeElement.getAttribute('aria-label')") == "Drain host-a"
    assert await state() == "ready"
    await page.press("Enter")
    await page.until(has("#dialog", "Drain host-a?"))
    await is_clear(page)
    await press(page, "Drain")
    await page.until(has("[data-key=host-host-a] .card-head .pill", "draining"))
    assert await state() == "draining"
    await press(page, "Undrain host-a")
    await page.until(has("[data-key=host-host-a] .card-head .pill", "ready"))
    assert await state() == "ready"


async def test_text_that_is_markup_stays_text(api: Stand, page: Page) -> None:
    markup = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
    await api.deploy("tiny")
    plan = await placed(api.database, "tiny", request_id=markup)
    async with api.database.transaction() as session:
        await abandon_start(session, AbandonInput(plan=plan, failure_code="start_failed", failure=markup))
    await live(page, api.url)
    await page.until(has(".failure", markup))
    assert await page.run(has(".fall .pill", "failed"))
    # A page's name comes from its address.
    await page.run(f"location.hash = '#/models/' + encodeURIComponent({markup!r})")
    await page.until(has("h1", markup))
    await page.run("location.hash = '#/models/tiny'")
    await page.until(has("#history .failure", markup))
    await page.run("document.querySelector('#history details').open = true")
    assert await page.run(has("#history .facts", markup))
    assert await page.run("document.querySelectorAll('main img, main script').length") == 0
    assert await page.run("window.hit") is None


async def test_a_start_that_serves_while_its_bytes_come_is_clear(api: Stand, page: Page) -> None:
    await api.deploy("tiny")
    await api.run(await placed(api.database, "tiny"))
    await live(page, api.url)
    await page.until(has(".fall[data-active] .doing", "serves, loads on"))
    await is_clear(page)


class Door:
    """An address that stays while what answers behind it comes and goes."""

    def __init__(self) -> None:
        self.port: int | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.port is None:
            writer.close()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._open |= {writer, up_writer}
        await asyncio.gather(self._pass(reader, up_writer), self._pass(up_reader, writer))
        self._open -= {writer, up_writer}

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def door() -> AsyncIterator[tuple[Door, str]]:
    made = Door()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    try:
        yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_the_page_comes_back_after_the_api_and_says_so_meanwhile(
    database: Database, tmp_path: Path, page: Page
) -> None:
    async with door() as (behind, url):
        async with stand(database, tmp_path) as api:
            behind.port = urlsplit(api.url).port
            await live(page, url)
            await page.until(has("#hosts", "host-b"))
        behind.port = None
        await page.until(has("#link", "connection lost"))
        await page.until(has("#trouble", "as they were"))
        # What was known stays to be read.
        assert await page.run(has("#hosts", "host-b"))
        await is_clear(page)
        async with stand(database, tmp_path, hosts=3) as again:
            behind.port = urlsplit(again.url).port
            await page.until(has("#link", "live"))
            await page.until(has("#hosts", "host-c"))
            await until(lambda: len(again.services.console._viewers) == 1)
        behind.port = None
