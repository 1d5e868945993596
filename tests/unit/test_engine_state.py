"""Idle time and fencing of one engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from firstlight.domain.errors import EngineGone, StaleEpoch
from firstlight.rpc.engine_pb2 import SessionPart
from gpu_worker.engine.control import AttachCommand
from gpu_worker.engine.interface import (
    Embedded,
    EmbeddingRequest,
    Engine,
    EngineRequest,
    Event,
    Load,
    MoveEvent,
    MoveOrder,
    Receiver,
)
from gpu_worker.engine.state import EngineState


async def test_idle_is_told_after_the_last_request() -> None:
    state = EngineState()
    with state.request():
        waiting = asyncio.ensure_future(state.wait_idle(0.05))
        done, _ = await asyncio.wait({waiting}, timeout=0.15)
        assert not done
        assert state.idle_s == 0
    assert 0.05 <= await asyncio.wait_for(waiting, 5) < 2


async def test_a_request_starts_the_wait_anew() -> None:
    state = EngineState()
    waiting = asyncio.ensure_future(state.wait_idle(0.2))
    begun = asyncio.get_running_loop().time()
    for _ in range(3):
        await asyncio.wait({waiting}, timeout=0.1)
        with state.request():
            pass
    await asyncio.wait_for(waiting, 5)
    assert asyncio.get_running_loop().time() - begun >= 0.45


def test_only_its_own_epoch_may_speak() -> None:
    state = EngineState()
    with pytest.raises(EngineGone):
        state.check_epoch(3)
    state.attachment = AttachCommand(
        instance_id="i", epoch=3, model="m", checkpoint_id="m@aaaa", max_concurrency=1
    )
    assert state.check_epoch(3).instance_id == "i"
    for other in (0, 2, 4):
        with pytest.raises(StaleEpoch):
            state.check_epoch(other)


async def test_time_as_a_spare_is_not_idle_time() -> None:
    state = EngineState()
    assert await state.wait_idle(0.1) >= 0.1
    state.become_ready(NoEngine())
    assert state.idle_s < 0.1


class NoEngine(Engine):
    max_concurrency = context_length = 1

    def start(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        raise NotImplementedError

    def embed(self, request: EmbeddingRequest) -> AsyncGenerator[Embedded, None]:
        raise NotImplementedError

    async def receive(self, parts: AsyncIterator[SessionPart]) -> int:
        raise NotImplementedError

    def drop(self, session_id: str) -> bool:
        raise NotImplementedError

    def move_out(self, order: MoveOrder, receiver: Receiver) -> AsyncGenerator[MoveEvent, None]:
        raise NotImplementedError

    def load(self) -> Load:
        return Load(running=0, waiting=0, tokens_generated=0)

    def close(self) -> None:
        pass
