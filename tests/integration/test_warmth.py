"""Warmth on real parts: arrivals and decisions in Postgres, hints at a real store, starts under Temporal."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from api_stand import Stand, stand, until
from fake_engine import hashed
from fake_host import FakeHost, working_cluster
from fleets import DIGEST, add_host, add_model, running
from held_host import HeldHost
from sqlalchemy import text
from temporalio.client import Client

from activities.looking_ahead import LookAhead
from activities.warmth import Warmth
from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.warmth import KeepAliveInput
from firstlight.database import hosts_repository, models_repository
from firstlight.database.arrivals_repository import Spell, read_histories, record_activity
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.database.fleet_view import read_picture
from firstlight.database.records import HostRegistration
from firstlight.domain.autoscaling.arrivals import EDGES_S, ArrivalHistory
from firstlight.domain.autoscaling.choice import keep_alive_policy
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.rpc.channels import Channels
from firstlight.rpc.host_pb2_grpc import add_HostServicer_to_server
from firstlight.rpc.server import bind, new_server
from firstlight.settings import Settings
from gpu_worker.store.config import StoreConfig
from tests.integration.store_checkpoints import put_checkpoint
from tests.integration.test_store_process import RunningStore, running_store

MIB = 2**20
HORIZON_S = 300.0


async def asked_for(database: Database, model: str, *, gap_s: float, count: int, quiet_s: float) -> None:
    """A history of one-second spells so far apart, the last one `quiet_s` ago."""
    now_s = time.time() - quiet_s
    spells = [
        Spell(now_s - turn * (gap_s + 1) - 1, now_s - turn * (gap_s + 1)) for turn in reversed(range(count))
    ]
    async with database.transaction() as session:
        await record_activity(session, {model: spells})


async def histories(database: Database) -> dict[str, ArrivalHistory]:
    async with database.session() as session:
        return await read_histories(session)


def warmth(database: Database, client: Client, tmp_path: Path, **settings: object) -> Warmth:
    chosen = Settings(state_dir=tmp_path, **settings)  # type: ignore[arg-type]
    return Warmth(database=database, client=client, settings=chosen)


@pytest_asyncio.fixture
async def client(temporal_server: EmbeddedTemporal) -> Client:
    return await Client.connect(temporal_server.address)


async def test_what_was_seen_of_a_model_is_kept_and_goes_with_it(database: Database) -> None:
    await add_host(database, "host-a")
    await add_model(database, "often")
    await add_model(database, "never")
    async with database.transaction() as session:
        await record_activity(session, {"often": [Spell(1000.0, 1001.0)], "unknown": [Spell(1.0, 2.0)]})
    async with database.transaction() as session:
        # A replica that tells late, and one that goes on.
        await record_activity(session, {"often": [Spell(1000.5, 1003.0), Spell(1063.0, 1064.0)]})
    assert await histories(database) == {
        "often": ArrivalHistory(active_until_s=1003.0).with_activity(from_s=1063.0, until_s=1064.0)
    }
    async with database.transaction() as session:
        await models_repository.begin_delete(session, "often")
    async with database.transaction() as session:
        assert await models_repository.finish_delete(session, "often")
    assert await histories(database) == {}


async def test_replicas_that_write_at_once_lose_nothing(database: Database) -> None:
    names = [f"m{number}" for number in range(4)]
    for name in names:
        await add_model(database, name)

    async def replica(shift: int) -> None:
        for turn in range(5):
            moments = {name: [Spell(turn * 100.0 + shift, turn * 100.0 + shift + 1)] for name in names}
            async with database.transaction() as session:
                await record_activity(session, dict(reversed(moments.items()) if shift else moments.items()))

    await asyncio.gather(*(replica(shift) for shift in range(4)))
    found = await histories(database)
    assert sorted(found) == names
    assert all(history.active_until_s == 404.0 and history.seen >= 1 for history in found.values())


async def test_the_database_refuses_a_history_that_is_none(database: Database) -> None:
    await add_model(database, "often")
    await asked_for(database, "often", gap_s=10, count=3, quiet_s=0)
    with pytest.raises(Exception, match="counts_are_whole"):
        async with database.transaction() as session:
            await session.execute(text("UPDATE arrivals SET counts = '{1,2}'"))


async def test_an_instance_is_kept_by_the_gaps_of_its_model(
    database: Database, client: Client, tmp_path: Path
) -> None:
    await add_host(database, "host-a", gpu_count=4)
    await add_model(database, "often", max_instances=2)
    start = await running(database, "often")
    asked = KeepAliveInput(start.instance_id, start.epoch)
    by_histogram = warmth(database, client, tmp_path, keep_alive_policy="hybrid-histogram")
    assert (await by_histogram.decide_keep_alive(asked)).keep_alive_s == 300.0

    await asked_for(database, "often", gap_s=20.0, count=20, quiet_s=5.0)
    decided = await by_histogram.decide_keep_alive(asked)
    assert 20.0 < decided.keep_alive_s < 40.0 and decided.basis == "histogram"
    fixed = warmth(database, client, tmp_path, keep_alive_policy="fixed")
    assert (await fixed.decide_keep_alive(asked)).keep_alive_s == 300.0

    # A second instance is there for a crowd, and goes soon after it; the first one stays as long as ever.
    second = await running(database, "often", may_wait=False)
    further = await fixed.decide_keep_alive(KeepAliveInput(second.instance_id, second.epoch))
    assert (further.keep_alive_s, further.basis) == (60.0, "the model has another instance")
    assert (await fixed.decide_keep_alive(asked)).keep_alive_s == 300.0


@pytest.mark.parametrize("idle_s", [0.0, 1.5, 7.0, 100.0, 40_000.0])
async def test_decisions_know_how_long_an_idle_instance_will_likely_stay_so(
    database: Database, idle_s: float
) -> None:
    await add_host(database, "host-a")
    await add_model(database, "often")
    start = await running(database, "often")
    await asked_for(database, "often", gap_s=120.0, count=20, quiet_s=5.0)
    load = EngineLoad(instance_id=start.instance_id, requests=0, tokens=0, idle_s=idle_s)
    async with database.transaction() as session:
        await write_loads(session, [load])
    async with database.session() as session:
        [one] = (await read_picture(session, now_unix_s=time.time())).snapshot.running
    history = (await histories(database))["often"]
    entered_s = max((edge for edge in EDGES_S if edge <= idle_s), default=0.0)
    assert one.expected_idle_for_s == (
        history.expected_idle_for_s(idle_s=entered_s) if 1.0 <= idle_s < EDGES_S[-1] else None
    )


async def test_an_instance_brought_back_ahead_of_need_is_kept_until_its_window_ends(
    database: Database, client: Client, tmp_path: Path
) -> None:
    await add_host(database, "host-a")
    await add_model(database, "clockwork")
    start = await running(database, "clockwork")
    policy = warmth(database, client, tmp_path, keep_alive_policy="hybrid-histogram")

    async def kept_s(*, idle_s: float) -> float:
        request = KeepAliveInput(start.instance_id, start.epoch, idle_s)
        return (await policy.decide_keep_alive(request)).keep_alive_s

    await asked_for(database, "clockwork", gap_s=1000.0, count=20, quiet_s=3.0)
    assert await kept_s(idle_s=1.0) == 0.0, "asked for a moment ago: let go at once"
    async with database.transaction() as session:
        await session.execute(text("UPDATE arrivals SET active_until_unix_s = active_until_unix_s - 900"))
    assert await kept_s(idle_s=30.0) > 30.0, "wanted within minutes"
    async with database.transaction() as session:
        await session.execute(text("UPDATE arrivals SET active_until_unix_s = active_until_unix_s - 900"))
    assert await kept_s(idle_s=900.0) == 0.0, "it did not come"


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    """Room in DRAM for two of three checkpoints of 5 MiB."""
    for seed, name in enumerate(("a@aaaa", "b@aaaa", "c@aaaa")):
        put_checkpoint(tmp_path / "ssd", name, size_bytes=5 * MIB, seed=seed)
    return StoreConfig(
        host_id="host-a", state_dir=str(tmp_path), ssd_capacity_bytes=100 * MIB, dram_capacity_bytes=12 * MIB
    )


@pytest_asyncio.fixture
async def store(config: StoreConfig, database: Database) -> AsyncIterator[RunningStore]:
    """A real store, known to the database with what it holds: three models on SSD, none in DRAM."""
    async with running_store(config) as made:
        address = json.loads(config.address_file.read_text())["address"]
        await register(database, store_address=address)
        for name in ("a", "b", "c"):
            await add_model(database, name, checkpoint_id=f"{name}@aaaa", size_bytes=5 * MIB)
            async with database.transaction() as session:
                await hosts_repository.set_placements(
                    session,
                    host_id="host-a",
                    checkpoint_id=f"{name}@aaaa",
                    ssd=True,
                    dram=None,
                    size_bytes=5 * MIB,
                    manifest_digest=DIGEST,
                )
        yield made


async def register(database: Database, *, store_address: str, host_address: str = "127.0.0.1:9") -> None:
    registration = HostRegistration(
        host_id="host-a",
        host_class="cpu-2c",
        host_address=host_address,
        store_address=store_address,
        gpu_count=1,
        gpu_memory_bytes=8 << 30,
        ssd_capacity_bytes=100 * MIB,
        dram_capacity_bytes=12 * MIB,
    )
    async with database.transaction() as session:
        await hosts_repository.register_host(session, registration, lease_s=600)


async def look(database: Database, client: Client, **settings: object) -> Sequence[str]:
    chosen = Settings(prefetch_horizon_s=HORIZON_S, **settings)  # type: ignore[arg-type]
    async with Channels() as channels:
        ahead = LookAhead(
            database=database,
            client=client,
            channels=channels,
            policy=keep_alive_policy(chosen.keep_alive_policy),
            settings=chosen,
        )
        return await ahead.run(now_unix_s=time.time())


async def test_a_likely_model_is_in_memory_before_it_is_asked_for(
    database: Database, client: Client, store: RunningStore
) -> None:
    await asked_for(database, "a", gap_s=60.0, count=20, quiet_s=10.0)
    await asked_for(database, "b", gap_s=10_000.0, count=20, quiet_s=10.0)
    assert await look(database, client) == [], "nothing is brought nearer unless there is a budget"
    [sentence] = await look(database, client, prefetch_bytes=100 * MIB)
    assert sentence.startswith("a goes to dram of host-a ahead of need: wanted with ")
    async with asyncio.timeout(10):
        while not (await store.row("a@aaaa")).in_dram:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)
    assert not (await store.row("b@aaaa")).in_dram


async def test_a_model_of_which_nothing_is_known_is_as_likely_as_is_said(
    database: Database, client: Client, store: RunningStore
) -> None:
    await asked_for(database, "b", gap_s=10_000.0, count=20, quiet_s=10.0)
    assert await look(database, client, prefetch_bytes=100 * MIB) == []
    unknown = {"prefetch_bytes": 5 * MIB, "prefetch_unknown_need": 0.5}
    # Room for one of the two that nobody asked for yet, by the pool's share.
    assert await look(database, client, prefetch_dram_share=0.0, **unknown) == []
    [sentence] = await look(database, client, **unknown)
    assert sentence.startswith("a goes to dram of host-a ahead of need: wanted with 50%")


async def test_a_store_that_was_told_keeps_the_likely_one(
    database: Database, client: Client, store: RunningStore
) -> None:
    await asked_for(database, "a", gap_s=60.0, count=20, quiet_s=10.0)
    await asked_for(database, "b", gap_s=10_000.0, count=20, quiet_s=10.0)
    await store.load("a@aaaa")
    await store.load("b@aaaa")
    await look(database, client)
    # By use alone the first one would go.
    await store.load("c@aaaa")
    assert (await store.row("a@aaaa")).in_dram and not (await store.row("b@aaaa")).in_dram


async def test_what_a_store_was_told_is_forgotten_in_time(store: RunningStore) -> None:
    await store.load("a@aaaa")
    await store.load("b@aaaa")
    await store.client.expect({"a@aaaa": 1.0, "b@aaaa": 0.0}, good_for_s=0.0)
    await store.load("c@aaaa")
    assert not (await store.row("a@aaaa")).in_dram and (await store.row("b@aaaa")).in_dram


@pytest_asyncio.fixture
async def agent(store: RunningStore, database: Database, config: StoreConfig) -> AsyncIterator[HeldHost]:
    """The supervisor beside that store."""
    held, server = HeldHost(), new_server()
    add_HostServicer_to_server(held, server)
    host_address = bind(server, bind_address="127.0.0.1", port=0)
    await server.start()
    store_address = json.loads(config.address_file.read_text())["address"]
    await register(database, store_address=store_address, host_address=host_address)
    yield held
    await server.stop(grace=0)


async def test_a_host_hears_how_long_its_processes_are_worth_keeping(
    database: Database, client: Client, agent: HeldHost
) -> None:
    await asked_for(database, "a", gap_s=60.0, count=20, quiet_s=10.0)
    await asked_for(database, "b", gap_s=60.0, count=20, quiet_s=7200.0)
    await add_model(database, "elsewhere", checkpoint_id="elsewhere@aaaa")
    await asked_for(database, "elsewhere", gap_s=60.0, count=20, quiet_s=10.0)
    for policy in ("fixed", "hybrid-histogram"):
        await look(database, client, keep_alive_policy=policy)
    assert agent.kept_warm == [], "these keep them always"
    await look(database, client, keep_alive_policy="layered", reconcile_every_s=20)
    [told] = agent.kept_warm
    # Nobody asked for c yet.
    assert sorted(told.architecture_s) == ["a@aaaa", "b@aaaa"]
    assert 0.0 == told.architecture_s["b@aaaa"] < told.architecture_s["a@aaaa"] <= told.spare_s < 3600.0
    assert told.good_for_s == 60.0


async def test_a_store_that_is_away_stops_nobody(database: Database, client: Client) -> None:
    await register(database, store_address="127.0.0.1:9")
    await add_model(database, "a", size_bytes=5 * MIB)
    await asked_for(database, "a", gap_s=60.0, count=20, quiet_s=10.0)
    for policy in ("fixed", "layered"):
        assert await look(database, client, prefetch_bytes=100 * MIB, keep_alive_policy=policy) == []


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path, temporal_server: EmbeddedTemporal) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path, temporal_address=temporal_server.address) as made:
        yield made


@pytest_asyncio.fixture
async def host(api: Stand, temporal_server: EmbeddedTemporal) -> AsyncIterator[FakeHost]:
    async with working_cluster(api, temporal_server.address, "host-a", "host-b") as fake:
        yield fake


async def test_a_model_asked_for_like_a_clock_runs_before_it_is_asked(
    api: Stand, host: FakeHost, client: Client
) -> None:
    await api.deploy("clockwork", max_instances=2)
    await asked_for(api.database, "clockwork", gap_s=1000.0, count=20, quiet_s=20.0)
    assert await look(api.database, client, keep_alive_policy="hybrid-histogram") == [], "too early"
    async with api.database.transaction() as session:
        await session.execute(text("UPDATE arrivals SET active_until_unix_s = active_until_unix_s - 850"))
    assert await look(api.database, client, keep_alive_policy="fixed") == []
    [sentence] = await look(api.database, client, keep_alive_policy="hybrid-histogram")
    assert sentence.startswith("clockwork is brought back on host-")
    await until(lambda: api.services.routes_of("clockwork"))
    assert len(host.started) == 1
    assert await look(api.database, client, keep_alive_policy="hybrid-histogram") == [], "it runs already"


async def test_the_api_keeps_what_it_sees_of_requests(api: Stand, host: FakeHost) -> None:
    engine = await api.warm("often", token_at=hashed(100))
    engine.gate.clear()
    answer = asyncio.create_task(ask(api))
    await until(lambda: engine.most_running)
    began_s = time.time()
    await api.services.arrivals.write()
    first = (await histories(api.database))["often"]
    assert first.active_until_s is not None and first.active_until_s >= began_s, "it runs still"
    engine.gate.set()
    await answer
    await api.services.arrivals.write()
    after = (await histories(api.database))["often"]
    assert after.active_until_s is not None and after.active_until_s > first.active_until_s
    assert after.seen == 0, "one spell makes no gap"


async def ask(api: Stand) -> None:
    hello = [{"role": "user", "content": "Hello!"}]
    await api.client.chat.completions.create(model="often", messages=hello, max_tokens=4)  # type: ignore[arg-type]
