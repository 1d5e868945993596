"""A GGUF file streamed over a link: unpacked on its way, and the very bytes of a conversion of the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.rate_limited_proxy import RateLimitedProxy
from firstlight.domain.errors import SourceCorrupt
from gpu_worker.store.streaming.planner import Planner
from tests.integration import store_s3
from tests.integration.engine_fixtures import SMOLLM2, smollm2_checkpoint, smollm2_gguf
from tests.integration.streaming_host import MIB, streaming_host

SOURCE = "s3://models/smollm2.gguf"


@pytest_asyncio.fixture(scope="module")
async def planner() -> AsyncIterator[Planner]:
    made = Planner()
    yield made
    await made.close()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with store_s3.s3_server(tmp_path_factory.mktemp("s3")) as endpoint:
        store_s3.bucket(endpoint).put("smollm2.gguf", smollm2_gguf().read_bytes())
        yield endpoint


@pytest.fixture
def link(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RateLimitedProxy]:
    with RateLimitedProxy(s3) as proxy:
        for key, value in store_s3.environment(proxy.endpoint).items():
            monkeypatch.setenv(key, value)
        yield proxy


async def test_it_streams_resumes_and_is_what_a_whole_conversion_makes(
    planner: Planner, tmp_path: Path, link: RateLimitedProxy
) -> None:
    link.bytes_per_s = 20 * MIB
    async with streaming_host(tmp_path, planner, dram_bytes=560 * MIB, ssd_bytes=1200 * MIB) as first:
        async for state in first.order(SOURCE, name=SMOLLM2, dtype="float32").watch():
            if state.ssd_bytes >= 96 * MIB:
                break
    assert not (tmp_path / "checkpoints" / SMOLLM2).exists()
    link.bytes_passed, link.bytes_per_s = 0, 1e12
    async with streaming_host(tmp_path, planner, dram_bytes=560 * MIB, ssd_bytes=1200 * MIB) as second:
        state = await second.order(SOURCE, name=SMOLLM2, dtype="float32").wait()
        # Ranges of the file, and what had been unpacked already did not come again.
        assert link.bytes_passed < state.source_bytes - 20 * MIB
        whole, made = smollm2_checkpoint(), second.cache.get(SMOLLM2).directory
        assert {path.name for path in made.iterdir()} == {path.name for path in whole.iterdir()}
        for path in whole.iterdir():
            assert (made / path.name).read_bytes() == path.read_bytes(), path.name
        assert second.pool.is_resident(SMOLLM2) and not second.staged()
        assert state.ssd_bytes == state.dram_bytes > 5 * state.remote_bytes


@pytest.mark.parametrize("size_bytes", [1000, 40 * MIB])
async def test_a_file_cut_short_is_refused_by_its_header(
    planner: Planner, tmp_path: Path, link: RateLimitedProxy, s3: str, size_bytes: int
) -> None:
    store_s3.bucket(s3).put("short.gguf", smollm2_gguf().read_bytes()[:size_bytes])
    link.bytes_passed = 0
    async with streaming_host(tmp_path, planner) as host:
        with pytest.raises(SourceCorrupt):
            await host.order("s3://models/short.gguf").wait()
        assert link.bytes_passed < 4 * MIB and not host.staged() and not host.pool.checkpoint_ids
