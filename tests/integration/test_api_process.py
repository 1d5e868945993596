"""The API as a process of its own: it ends gracefully, and it refuses to be open to everyone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from api_model import text_files
from api_stand import NOWHERE
from fake_engine import FakeEngine, FakeStore, hashed
from fleets import DIGEST, add_model, placed

from firstlight.database import hosts_repository
from firstlight.database.connection import Database
from firstlight.database.records import HostRegistration
from firstlight.database.starts_repository import publish_route
from firstlight.launcher.machine_checks import free_port

HOST = "127.0.0.1"


@asynccontextmanager
async def api_process(
    database_url: str, folder: Path, **settings: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        **os.environ,
        "FIRSTLIGHT_DATABASE_URL": database_url,
        "FIRSTLIGHT_TEMPORAL_ADDRESS": NOWHERE,
        "FIRSTLIGHT_STATE_DIR": str(folder),
        **settings,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "firstlight.launcher.api_server",
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def answers(http: httpx.AsyncClient, path: str) -> httpx.Response:
    deadline_s = asyncio.get_running_loop().time() + 40
    while True:
        try:
            response = await http.get(path)
            if response.is_success:
                return response
        except httpx.TransportError:
            pass
        assert asyncio.get_running_loop().time() < deadline_s, f"{path} did not answer"
        await asyncio.sleep(0.05)


async def running_model(database: Database, store: FakeStore) -> FakeEngine:
    async with database.transaction() as session:
        registration = HostRegistration(
            host_id="host-a",
            host_class="cpu-2c",
            host_address=NOWHERE,
            store_address=store.address,
            gpu_count=1,
            gpu_memory_bytes=8 << 30,
            ssd_capacity_bytes=100 << 30,
            dram_capacity_bytes=16 << 30,
        )
        await hosts_repository.register_host(session, registration, lease_s=600)
    record = await add_model(database, "tiny")
    store.files[record.checkpoint_id] = text_files()
    plan = await placed(database, "tiny")
    engine = await FakeEngine(plan.instance_id, plan.epoch, hashed(300), pause_s=0.02).start()
    async with database.transaction() as session:
        await publish_route(
            session,
            instance_id=plan.instance_id,
            epoch=plan.epoch,
            endpoint=engine.endpoint,
            manifest_digest=DIGEST,
            size_bytes=1_000_000,
        )
    return engine


async def test_sigterm_lets_a_stream_end_by_itself(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    store = await FakeStore({}).start()
    engine = await running_model(database, store)
    port = free_port(HOST)
    async with (
        api_process(database_url, tmp_path, FIRSTLIGHT_API_PORT=str(port)) as process,
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=30) as http,
    ):
        await answers(http, "/v1/models/tiny")
        body = {"model": "tiny", "prompt": "x", "max_tokens": 40, "stream": True}
        lines = []
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                lines.append(line)
                if len(lines) == 3:
                    process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        async with asyncio.timeout(20):
            assert await process.wait() == 0
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()
    await engine.stop()
    await store.stop()


async def test_it_does_not_start_open_to_everyone(database_url: str, tmp_path: Path) -> None:
    port = str(free_port(HOST))
    async with (
        asyncio.timeout(60),
        api_process(
            database_url, tmp_path, FIRSTLIGHT_API_HOST="0.0.0.0", FIRSTLIGHT_API_PORT=port
        ) as process,
    ):
        _, told = await process.communicate()
        assert process.returncode == 1
        assert b"FIRSTLIGHT_API_KEYS" in told


async def test_it_opens_no_door_while_nobody_knows_whether_keys_are_asked_for(tmp_path: Path) -> None:
    """On loopback and without keys in the settings, an API may start while Postgres is away."""
    port = str(free_port(HOST))
    nowhere = f"postgresql://nobody@{NOWHERE}/x"
    async with (
        api_process(nowhere, tmp_path, FIRSTLIGHT_API_PORT=port),
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=30) as http,
    ):
        await answers(http, "/healthz")
        for path in ("/v1/models", "/admin/v1/keys"):
            response = await http.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
