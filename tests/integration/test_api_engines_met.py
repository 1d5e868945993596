"""Engines that may soon serve are connected to ahead, and let go again where they never do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from api import engine_client
from api.engine_client import EngineClient
from api.journal import Journal, SamplingChoice
from api.routing.lane import Route
from firstlight.rpc.channels import Channels


class Counted(Channels):
    """Says which channels are open."""

    @property
    def open(self) -> set[str]:
        return set(self._open)


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_the_connection_is_there_before_the_first_call(engine: str) -> None:
    async with Counted() as channels, asyncio.timeout(10):
        await EngineClient(channels).meet([engine])
        channel = channels.to(engine)
        while (state := channel.get_state()) is not grpc.ChannelConnectivity.READY:
            await channel.wait_for_state_change(state)


async def test_who_never_serves_is_let_go(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Counted() as channels:
        engines = EngineClient(channels)
        used = "127.0.0.1:9"
        await engines.meet([engine, used])
        engines.generate(
            Route("i", "m", "host-a", endpoint=used, epoch=1, max_concurrency=1),
            Journal("r", prompt_token_ids=(1,), sampling=SamplingChoice(), max_tokens=1),
        )
        await engines.meet([])
        assert channels.open == {engine, used}
        monkeypatch.setattr(engine_client, "MET_FOR_S", -1.0)
        await engines.meet([])
        assert channels.open == {used}


async def test_nobody_at_the_address_harms_nothing() -> None:
    async with Counted() as channels:
        await EngineClient(channels).meet(["127.0.0.1:1"])
        await asyncio.sleep(0.1)
