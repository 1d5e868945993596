"""More requests than every limit lets in, and streams that only wait: real HTTP, engines by contract."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_stand import stand, until

from api.openai.signs_of_life import Patience
from benchmarks.api_client import HttpClient
from benchmarks.api_crowds import COMPLETIONS, hold_waiting, stampede
from benchmarks.stalling_server import StallingServer
from firstlight.database.connection import Database

MODEL = "crowded"
PLACES, QUEUE = 4, 16


def body(*, is_stream: bool = False, tokens: int = 2) -> dict[str, object]:
    return {"model": MODEL, "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True, "stream": is_stream}


async def test_a_stampede_is_served_or_told_when_to_come_again(database: Database, tmp_path: Path) -> None:
    # On a machine that has little time for this, the line may fill up while a prompt is put into tokens: no
    # stream shall have begun by then.
    patience = Patience(first_sign_s=30.0)
    async with stand(
        database, tmp_path, max_queue_per_model=QUEUE, start_timeout_s=30, patience=patience
    ) as api:
        engine = await api.warm(MODEL, max_concurrency=PLACES)
        engine.pause_s = 0.05
        tally = await stampede(api.url, "all at once", [body(is_stream=bool(n % 2)) for n in range(300)])
        assert tally.wrong == []
        assert set(tally.ends) == {"200", "429"}
        # No place stays empty while somebody waits, and nobody gets one twice.
        assert tally.ends["200"] >= PLACES + QUEUE
        assert engine.most_running == PLACES
        lane = api.services.table.lane(MODEL)
        await until(lambda: lane.running == 0 and lane.waiting == 0)


async def test_a_model_that_no_gpu_is_free_for_says_when_to_come_again(
    database: Database, tmp_path: Path
) -> None:
    # The only GPU is another model's, and nobody is there who could make it give way.
    async with stand(database, tmp_path, hosts=1, start_timeout_s=2) as api:
        await api.warm("holder", max_concurrency=1)
        await api.deploy(MODEL)
        tally = await stampede(api.url, "no GPU", [body(is_stream=bool(n % 2)) for n in range(20)])
        assert tally.wrong == []
        assert set(tally.ends) <= {"429", "503"}


async def test_waiting_streams_cost_little_and_leave_nothing(database: Database, tmp_path: Path) -> None:
    patience = Patience(first_sign_s=0.2, every_s=0.5)
    async with stand(database, tmp_path, patience=patience, max_queue_per_model=400) as api:
        await api.warm(MODEL, max_concurrency=1)
        engine = next(iter(api.engines.values()))
        engine.gate.clear()
        lane = api.services.table.lane(MODEL)
        slot = await lane.take(deadline_s=1e9, request_id="holder")
        # This process holds both ends of each stream.
        waiting = await hold_waiting(api.url, MODEL, pid=os.getpid(), streams=300, within_s=60)
        assert waiting.grown_bytes < 300 * 500_000
        await until(lambda: lane.waiting == 0)
        lane.give_back(slot)
        engine.gate.set()
        assert (await HttpClient(api.url).post(COMPLETIONS, body())).status == 200


@pytest.fixture
def served(tmp_path: Path) -> Iterator[StallingServer]:
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(256)) * 4)
    with StallingServer(file) as server:
        yield server


async def test_the_stalling_server_serves_ranges(served: StallingServer) -> None:
    import httpx

    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        part = await http.get(served.url, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
        served.is_stalling.set()
        with pytest.raises(httpx.ReadTimeout):
            await http.get(served.url, timeout=0.5)
