"""Hints over calls that stay open, against a real store process: refused, killed, stopped and back."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firstlight.domain.errors import EngineGone, InvalidName, StartTimeout
from firstlight.rpc.channels import Channels
from firstlight.rpc.hint_lines import HintLines
from firstlight.rpc.store_pb2 import PrepareRequest
from tests.integration.test_store_process import MIB, A, B, RunningStore, running_store, small_store

ABSENT = PrepareRequest(checkpoint_id="x@aaaa")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RunningStore]:
    async with running_store(small_store(tmp_path)) as running:
        yield running


@pytest.fixture
async def hints() -> AsyncIterator[HintLines]:
    async with Channels() as channels:
        lines = HintLines(channels)
        try:
            yield lines
        finally:
            await lines.close()


async def opened(hints: HintLines, store: RunningStore) -> None:
    async with asyncio.timeout(10):
        while not await hints.until_open(store.address):
            hints.keep([store.address])


async def test_hints_on_a_line_move_bytes_and_are_answered_in_order(
    hints: HintLines, store: RunningStore
) -> None:
    await opened(hints, store)
    asked = [PrepareRequest(checkpoint_id=name) for name in (A, "x@aaaa", A, B)]
    found = await asyncio.gather(*(hints.prepare(store.address, one) for one in asked))
    assert [reply.found_in for reply in found[:2]] == ["ssd", "absent"]
    assert found[2].found_in in ("loading", "dram"), "the first hint has begun it"
    assert found[3].found_in == "ssd" and found[3].bytes_to_move >= 5 * MIB
    assert (await store.load(A)).done and (await store.load(B)).done
    assert await hints.until_open(store.address), "four hints, one line"


async def test_without_a_line_a_hint_is_a_call(hints: HintLines, store: RunningStore) -> None:
    assert (await hints.prepare(store.address, ABSENT)).found_in == "absent"
    assert not await hints.until_open(store.address)


async def test_a_hint_that_is_refused_says_why_and_others_beside_it_are_answered(
    hints: HintLines, store: RunningStore
) -> None:
    await opened(hints, store)
    refused, beside = await asyncio.gather(
        hints.prepare(store.address, PrepareRequest(checkpoint_id="../x@aaaa")),
        hints.prepare(store.address, ABSENT),
        return_exceptions=True,
    )
    assert isinstance(refused, InvalidName)
    assert not isinstance(beside, BaseException) and beside.found_in == "absent"
    await opened(hints, store)
    assert (await hints.prepare(store.address, ABSENT)).found_in == "absent"


async def test_a_store_that_dies_is_told_by_the_next_hint(hints: HintLines, store: RunningStore) -> None:
    await opened(hints, store)
    store.process.send_signal(signal.SIGKILL)
    await store.process.wait()
    began_s = time.monotonic()
    with pytest.raises(EngineGone):
        await hints.prepare(store.address, ABSENT)
    assert time.monotonic() - began_s < 5


async def test_a_store_that_hangs_is_not_waited_for(hints: HintLines, store: RunningStore) -> None:
    """Stopped between hint and answer: the line gives up, and so does the call that follows it."""
    await opened(hints, store)
    store.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            with pytest.raises(StartTimeout):
                await hints.prepare(store.address, ABSENT)
    finally:
        store.process.send_signal(signal.SIGCONT)
    await opened(hints, store)
    assert (await hints.prepare(store.address, ABSENT)).found_in == "absent"


async def test_a_line_does_not_hold_up_the_stop_of_its_store(hints: HintLines, store: RunningStore) -> None:
    await opened(hints, store)
    began_s = time.monotonic()
    store.process.terminate()
    assert await store.process.wait() == 0
    assert time.monotonic() - began_s < 5


async def test_lines_to_stores_that_left_are_closed(hints: HintLines, store: RunningStore) -> None:
    await opened(hints, store)
    hints.keep([])
    assert not await hints.until_open(store.address)
    assert (await hints.prepare(store.address, ABSENT)).found_in == "absent"


async def test_a_store_says_for_which_request_each_hint_was(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, hints: HintLines
) -> None:
    async with running_store(replace(small_store(tmp_path), log_format="json")) as store:
        await opened(hints, store)
        for request_id in ("req-1", "req-2"):
            hint = PrepareRequest(checkpoint_id="x@aaaa", instance_id=request_id)
            await hints.prepare(store.address, hint)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    told = [line["request_id"] for line in lines if "found_in=absent" in line["message"]]
    assert told == ["req-1", "req-2"]
