"""A stand for API tests: the real application on a real port and database, engines and store by contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import uvicorn
from api_model import model_text, text_files
from fake_engine import FakeEngine, FakeStore, TokenAt, hashed
from fleets import DIGEST, add_model, placed
from openai import AsyncOpenAI
from temporalio.client import Client

from api.app import create_app
from api.openai.signs_of_life import Patience
from api.services import Dependencies, Services
from firstlight.contracts.starts import StartPlan
from firstlight.database import hosts_repository
from firstlight.database.connection import Database
from firstlight.database.records import HostRegistration
from firstlight.database.starts_repository import publish_route
from firstlight.launcher.api_server import ApiServer, lazy_client, server_config
from firstlight.settings import Settings
from gpu_worker.store.sources.description import Layout, SourceDescription, SourceFile, described

# A port nothing listens on: Temporal is away unless a test brings it.
NOWHERE = "127.0.0.1:9"


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait until `condition()` is true. Raises: AssertionError at the deadline."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def describe(uri: str) -> SourceDescription:
    return described(uri, Layout.HUGGING_FACE, [SourceFile("model.safetensors", 1000)])


@dataclass(eq=False)
class Stand:
    """`engines` by instance id. `client` is the official one, with retries off."""

    services: Services
    database: Database
    url: str
    store: FakeStore
    http: httpx.AsyncClient
    client: AsyncOpenAI
    engines: dict[str, FakeEngine] = field(default_factory=dict)

    async def add_host(self, host_id: str, *, gpu_count: int = 1) -> None:
        registration = HostRegistration(
            host_id=host_id,
            host_class="cpu-2c",
            host_address=NOWHERE,
            store_address=self.store.address,
            gpu_count=gpu_count,
            gpu_memory_bytes=8 << 30,
            ssd_capacity_bytes=100 << 30,
            dram_capacity_bytes=16 << 30,
        )
        async with self.database.transaction() as session:
            await hosts_repository.register_host(session, registration, lease_s=600)

    async def deploy(self, name: str, *, files: Mapping[str, bytes] | None = None, **changes: object) -> None:
        """`files` stand beside the usual ones."""
        small = {"size_bytes": 1_000_000, "source_bytes": 1_000_000}
        record = await add_model(self.database, name, **{**small, **changes})
        self.store.files[record.checkpoint_id] = {**text_files(), **(files or {})}
        await until(lambda: self.services.catalog.known(name))

    async def run(self, plan: StartPlan, *, token_at: TokenAt | None = None) -> FakeEngine:
        """Carry a planned start through: an engine, and its route in the database."""
        engine = FakeEngine(
            plan.instance_id, plan.epoch, token_at or hashed(model_text().vocabulary_size - 4)
        )
        if (before := self.engines.get(plan.instance_id)) is not None:
            # A start that is tried again gets another one, as a supervisor would see to.
            await before.stop()
        self.engines[plan.instance_id] = await engine.start()
        async with self.database.transaction() as session:
            await publish_route(
                session,
                instance_id=plan.instance_id,
                epoch=plan.epoch,
                endpoint=engine.endpoint,
                manifest_digest=DIGEST,
                size_bytes=1_000_000,
            )
        return engine

    async def warm(
        self,
        name: str,
        *,
        token_at: TokenAt | None = None,
        files: Mapping[str, bytes] | None = None,
        **changes: object,
    ) -> FakeEngine:
        """Deploy if need be, run one instance, and wait until the API knows it and its tokenizer."""
        if self.services.catalog.known(name) is None:
            await self.deploy(name, files=files, **changes)
        before = len(self.services.routes_of(name))
        plan = await placed(self.database, name, may_wait=before == 0)
        engine = await self.run(plan, token_at=token_at)
        await until(lambda: len(self.services.routes_of(name)) == before + 1)
        await self.services.texts.load(await self.services.catalog.find(name), host_id=plan.host_id)
        return engine


@asynccontextmanager
async def stand(
    database: Database,
    folder: Path,
    *,
    temporal_address: str = NOWHERE,
    patience: Patience | None = None,
    api_key: str = "none",
    hosts: int = 2,
    **settings: object,
) -> AsyncIterator[Stand]:
    chosen = Settings(
        state_dir=folder,
        api_port=0,
        temporal_address=temporal_address,
        **settings,  # type: ignore[arg-type]
    )
    dependencies = Dependencies(
        settings=chosen,
        database=database,
        temporal=await lazy_client(chosen),
        describe=describe,
        body_limit_bytes=256 << 10,
    )
    if patience is not None:
        dependencies = replace(dependencies, patience=patience)
    app = create_app(dependencies)
    server = ApiServer(server_config(app, chosen), on_stop=app.state.services.leave)
    serving = asyncio.create_task(server.serve())
    store = await FakeStore({}).start()
    try:
        await until(lambda: server.started or serving.done())
        url = f"http://127.0.0.1:{_port(server)}"
        headers = {"authorization": f"Bearer {api_key}"}
        async with (
            httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as http,
            httpx.AsyncClient(trust_env=False, timeout=30) as openai_http,
            AsyncOpenAI(
                base_url=f"{url}/v1", api_key=api_key, max_retries=0, http_client=openai_http
            ) as client,
        ):
            services: Services = app.state.services
            await services.until_fresh()
            made = Stand(services, database, url, store, http, client)
            for number in range(hosts):
                await made.add_host(f"host-{chr(ord('a') + number)}")
            yield made
            for engine in made.engines.values():
                await engine.stop()
    finally:
        server.should_exit = True
        await serving
        await store.stop()


def _port(server: uvicorn.Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


async def connected(address: str) -> Client:
    return await Client.connect(address)
