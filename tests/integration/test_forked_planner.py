"""Planners of conversions that the zygote of engines forks: the same plans, and never an orphan."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firstlight.domain.errors import SourceUnsupported
from gpu_worker.convert.planning import plan
from gpu_worker.convert.stream_plan import read_plan
from gpu_worker.host.zygote import KeptZygote
from gpu_worker.store.streaming import planner_process
from gpu_worker.store.streaming.planner import Planner
from tests.integration.store_processes import command_line, descendants, is_alive, until
from tests.integration.tiny_models import write_tiny_model

ABOUT = {"dtype": "bfloat16", "model": "m", "revision": "r"}


@asynccontextmanager
async def kept_zygote(folder: Path) -> AsyncIterator[KeptZygote]:
    folder.mkdir()
    kept = KeptZygote(folder, planner_socket=folder / "planners.sock")
    kept.start()
    try:
        yield kept
    finally:
        await kept.close()


@pytest.fixture(scope="module")
async def zygote(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KeptZygote]:
    async with kept_zygote(tmp_path_factory.mktemp("zygote") / "host") as kept:
        yield kept


@pytest.fixture
async def planner(zygote: KeptZygote) -> AsyncIterator[Planner]:
    made = Planner(forked_at=zygote._planner_socket)
    yield made
    await made.close()
    # One that was not ready yet finds nobody to tell, and ends by itself.
    await until(lambda: not children_of(zygote.pid), within_s=10, what="no planner is left")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "llama")


def children_of(pid: int | None) -> set[int]:
    assert pid is not None
    return descendants(pid)


def sizes(model: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in model.iterdir()}


async def test_it_plans_as_the_conversion_would(
    planner: Planner, zygote: KeptZygote, model: Path, tmp_path: Path
) -> None:
    # The socket is there before the zygote has imported anything: who comes early waits.
    assert await planner.plan(model, tmp_path, **ABOUT) is None
    assert read_plan(tmp_path, file_sizes=sizes(model)) == plan(model, **ABOUT)
    [pid] = children_of(zygote.pid)
    assert not [one for one in descendants(os.getpid()) if "--serve-plans" in command_line(one)]
    # What cannot be served is said in the conversion's own words, and the next question goes to the same one.
    write_tiny_model(tmp_path / "strange", "llama")
    config = tmp_path / "strange" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"strange"'))
    with pytest.raises(SourceUnsupported, match="strange"):
        await planner.plan(tmp_path / "strange", tmp_path / "out", **ABOUT)
    assert await planner.plan(model, tmp_path, **ABOUT) is None
    assert children_of(zygote.pid) == {pid}
    await planner.close()
    await until(lambda: not is_alive(pid), within_s=5, what="it ends with whom it serves")


async def test_who_stops_waiting_leaves_no_planner_at_work(
    planner: Planner, zygote: KeptZygote, model: Path, tmp_path: Path
) -> None:
    assert await planner.plan(model, tmp_path, **ABOUT) is None
    [first] = children_of(zygote.pid)
    asked = asyncio.ensure_future(planner.plan(model, tmp_path, **ABOUT))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await until(lambda: not is_alive(first), within_s=5, what="half a conversation is over")
    assert await planner.plan(model, tmp_path, **ABOUT) is None
    assert first not in children_of(zygote.pid)


async def test_it_ends_with_its_zygote_and_the_next_forks_another(model: Path, tmp_path: Path) -> None:
    async with kept_zygote(tmp_path / "host") as zygote:
        planner = Planner(forked_at=zygote._planner_socket)
        try:
            assert await planner.plan(model, tmp_path / "first", **ABOUT) is None
            before = zygote.pid
            [pid] = children_of(before)
            os.kill(before or 0, signal.SIGKILL)
            await until(lambda: not is_alive(pid), within_s=5, what="the planner is gone")
            process = planner._process
            assert process is not None
            await until(lambda: process.has_ended, within_s=5, what="and this is known")
            # At the socket of the zygote that is no more, until its successor has imported all it needs.
            assert await planner.plan(model, tmp_path / "second", **ABOUT) is None
            assert zygote.pid != before
            assert len(children_of(zygote.pid)) == 1
        finally:
            await planner.close()


async def test_without_a_zygote_it_is_started(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await planner_process.forked_at(tmp_path / "nowhere.sock") is None
    # One that listens and never comes to life: not waited for beyond its time.
    monkeypatch.setattr(planner_process, "FORKED_WITHIN_S", 0.2)
    mute = await asyncio.start_unix_server(lambda reader, writer: None, path=str(tmp_path / "mute.sock"))
    async with mute:
        planner = Planner(forked_at=tmp_path / "mute.sock")
        try:
            assert await planner.plan(model, tmp_path / "out", **ABOUT) is None
            assert [one for one in descendants(os.getpid()) if "--serve-plans" in command_line(one)]
        finally:
            await planner.close()
        assert not [one for one in descendants(os.getpid()) if "--serve-plans" in command_line(one)]
