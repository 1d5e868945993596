"""Downloads: joined, verified, whole or absent; the converter is a stand-in process that copies."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstlight.domain.errors import (
    Cancelled,
    CheckpointMismatch,
    Conflict,
    DiskFull,
    InvalidInput,
    SourceUnreachable,
    SourceUnsupported,
)
from gpu_worker.store.download_order import DownloadOrder
from gpu_worker.store.downloads import Downloads
from gpu_worker.store.ssd_cache import SsdCache
from tests.integration.store_processes import command_line, descendants, is_alive

CONVERTER = (sys.executable, str(Path(__file__).with_name("fake_converter.py")))
NAME = "tiny@aaaa"
WEIGHTS = b"w" * 5000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(WEIGHTS)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SsdCache]:
    made = SsdCache(root=tmp_path / "ssd", capacity_bytes=20_000)
    yield made
    made.close()


def downloads(cache: SsdCache) -> Downloads:
    return Downloads(cache=cache, fetch_parallelism=2, converter=CONVERTER)


def order(source: Path, *, digest: str = "", name: str = NAME) -> DownloadOrder:
    return DownloadOrder(checkpoint_id=name, source=source.as_uri(), dtype="float32", expected_digest=digest)


def nothing_left(cache: SsdCache, tmp_path: Path) -> None:
    assert cache.used_bytes == 0
    for folder in ("checkpoints", "writing", "staging"):
        assert not list((tmp_path / "ssd" / folder).iterdir())


async def test_two_requests_are_one_download(cache: SsdCache, source: Path) -> None:
    running = downloads(cache)
    first, second = running.order(order(source)), running.order(order(source))
    assert first is second
    state = await first.wait()
    assert (state.phase, state.manifest_digest, state.was_present) == ("done", "digest-of-5000", False)
    assert state.source_bytes == 5002
    assert (cache.get(NAME).directory / "partition-0.bin").read_bytes() == WEIGHTS
    assert cache.used_bytes == cache.get(NAME).size_bytes
    again = await running.order(order(source)).wait()
    assert again.was_present and again.manifest_digest == "digest-of-5000"


async def test_another_source_under_the_same_id_is_refused(cache: SsdCache, source: Path) -> None:
    running = downloads(cache)
    first = running.order(order(source))
    with pytest.raises(Conflict):
        running.order(order(source.parent))
    await first.wait()


async def test_other_bytes_than_recorded_are_not_admitted(
    cache: SsdCache, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointMismatch, match="first conversion"):
        await downloads(cache).order(order(source, digest="digest-of-4")).wait()
    nothing_left(cache, tmp_path)


async def test_what_the_host_holds_of_an_older_conversion_is_replaced(cache: SsdCache, source: Path) -> None:
    running = downloads(cache)
    await running.order(order(source)).wait()
    (source / "model.safetensors").write_bytes(WEIGHTS[:-1])
    state = await running.order(order(source, digest="digest-of-4999")).wait()
    assert not state.was_present and cache.get(NAME).manifest_digest == "digest-of-4999"


async def test_the_converters_own_words_reach_the_caller(
    cache: SsdCache, source: Path, tmp_path: Path
) -> None:
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(SourceUnsupported, match="architecture Foo"):
        await downloads(cache).order(order(source)).wait()
    nothing_left(cache, tmp_path)


async def test_a_source_that_is_not_there(cache: SsdCache, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable):
        await downloads(cache).order(order(tmp_path / "absent")).wait()
    nothing_left(cache, tmp_path)


async def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    small = SsdCache(root=tmp_path / "ssd", capacity_bytes=4000)
    with pytest.raises(DiskFull, match="lacks"):
        await downloads(small).order(order(source)).wait()
    nothing_left(small, tmp_path)
    small.close()


async def test_room_is_made_by_evicting(cache: SsdCache, source: Path) -> None:
    running = downloads(cache)
    for name in ("a@aaaa", "b@aaaa", "c@aaaa", "d@aaaa"):
        await running.order(order(source, name=name)).wait()
    present = [entry.checkpoint_id for entry in cache.checkpoints]
    assert "a@aaaa" not in present and "d@aaaa" in present
    assert cache.used_bytes <= cache.capacity_bytes


async def test_a_close_ends_the_converter_and_removes_its_half(
    cache: SsdCache, source: Path, tmp_path: Path
) -> None:
    (source / "chat_template.jinja").write_text("slow")
    running = downloads(cache)
    # Servers of other tests in this session are below us too.
    others = descendants(os.getpid())
    work = running.order(order(source))
    async for state in work.watch():
        if state.phase == "convert" and state.bytes_total == len(WEIGHTS):
            break
    converters = descendants(os.getpid()) - others
    assert converters
    await running.close()
    assert not any(is_alive(pid) for pid in converters)
    nothing_left(cache, tmp_path)
    with pytest.raises(asyncio.CancelledError):
        work.task.result()


def test_a_dtype_that_is_none_of_ours_is_refused(source: Path) -> None:
    with pytest.raises(InvalidInput):
        DownloadOrder(checkpoint_id=NAME, source=source.as_uri(), dtype="int8", expected_digest="")


async def test_a_download_that_nobody_wants_any_more_stops_and_the_next_one_goes_on(
    cache: SsdCache, source: Path, tmp_path: Path
) -> None:
    slow = (sys.executable, "-c", "import time; time.sleep(600)")
    running = Downloads(cache=cache, fetch_parallelism=2, converter=slow, unwanted_s=0.3)
    watched = running.order(order(source))
    watching = asyncio.create_task(watched.wait())
    # As long as somebody waits it goes on, however long it takes.
    done, _ = await asyncio.wait([watching], timeout=0.8)
    assert not done and running.is_running(NAME)
    watching.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([watched.task])
    assert not running.is_running(NAME)
    assert isinstance(watched.task.exception(), Cancelled)
    assert not [
        pid for pid in descendants(os.getpid()) if is_alive(pid) and "time.sleep(600)" in command_line(pid)
    ]
    again = await downloads(cache).order(order(source)).wait()
    assert again.size_bytes > 0
    await running.close()
