"""So many streams at a time against one server, and what came of it in a window of time.

Every worker asks again as soon as it has its answer. The first answers are of different lengths, so that the
workers do not march in step. Throughput counts what came inside the window, answers cut by its edges by their
share: a server that answers one after the other and one that answers all together are judged alike.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks.api_client import Answer, Broken, HttpClient
from benchmarks.report import quantile
from firstlight.rpc import engine_pb2
from firstlight.rpc.channels import OPTIONS
from firstlight.rpc.engine_pb2_grpc import InferenceStub


class Asker(ABC):
    """One worker's way to ask: one request at a time."""

    @abstractmethod
    async def ask(self, prompt: int, max_tokens: int, answer: Answer) -> None:
        """Fill `answer` as it comes, to its end. Raises: Broken."""

    @abstractmethod
    async def close(self) -> None: ...


class HttpAsker(Asker):
    """`/v1/completions` of an OpenAI-compatible server."""

    def __init__(
        self, url: str, model: str, prompts: Sequence[str], *, more: Mapping[str, Any] | None = None
    ) -> None:
        self._client = HttpClient(url)
        self._model, self._prompts, self._more = model, prompts, dict(more or {})

    async def ask(self, prompt: int, max_tokens: int, answer: Answer) -> None:
        body = {
            "model": self._model,
            "prompt": self._prompts[prompt % len(self._prompts)],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            **self._more,
        }
        await self._client.post("/v1/completions", body, into=answer)
        if not answer.is_whole:
            raise Broken(f"{answer.status}: {answer.body[-300:]!r}")

    async def close(self) -> None:
        await self._client.close()


class Engines:
    """Channels to the instances that serve, as the API holds them: one each."""

    def __init__(self, instances: Sequence[Mapping[str, Any]]) -> None:
        self._channels = [grpc.aio.insecure_channel(row["endpoint"], options=OPTIONS) for row in instances]
        self.stubs = [InferenceStub(channel) for channel in self._channels]
        self.epochs = [int(row["epoch"]) for row in instances]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


class EngineAsker(Asker):
    """The engine over gRPC, without the API: token ids in, tokens out. Workers take instances in turn."""

    def __init__(self, engines: Engines, number: int, prompts: Sequence[Sequence[int]]) -> None:
        which = number % len(engines.stubs)
        self._stub, self._epoch = engines.stubs[which], engines.epochs[which]
        self._prompts = prompts
        self._name = f"direct-{number}"
        self._count = 0

    async def ask(self, prompt: int, max_tokens: int, answer: Answer) -> None:
        self._count += 1
        request = engine_pb2.GenerateRequest(
            request_id=f"{self._name}-{self._count}",
            epoch=self._epoch,
            prompt_token_ids=self._prompts[prompt % len(self._prompts)],
            max_tokens=max_tokens,
            ignore_eos=True,
            sampling=engine_pb2.Sampling(temperature=0.0),
        )
        answer.asked_s = time.monotonic()
        try:
            async for chunk in self._stub.Generate(request):
                if chunk.has_token:
                    answer.events_s.append(time.monotonic())
        except grpc.aio.AioRpcError as failure:
            raise Broken(f"engine: {failure.code().name} {failure.details()}") from failure
        answer.status, answer.ended_s = 200, time.monotonic()
        answer.first_s = answer.events_s[0] if answer.events_s else None

    async def close(self) -> None:
        return None


@dataclass(slots=True)
class Level:
    """What `streams` at a time came to; seconds."""

    streams: int
    requests_per_s: float
    tokens_per_s: float
    first_token_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, float | int | None]:
        """For a report's trials."""
        return {
            "streams": self.streams,
            "requests_per_s": self.requests_per_s,
            "tokens_per_s": self.tokens_per_s,
            "answers": len(self.whole_s),
            "first_token_p50_s": quantile(self.first_token_s, 0.5) if self.first_token_s else None,
            "first_token_p99_s": quantile(self.first_token_s, 0.99) if self.first_token_s else None,
            "whole_p50_s": quantile(self.whole_s, 0.5) if self.whole_s else None,
            "broken": len(self.broken),
        }


async def drive(
    make: Callable[[int], Asker], *, streams: int, tokens: int, warm_s: float, window_s: float
) -> Level:
    """Keep `streams` requests of `tokens` tokens running for `warm_s` and then `window_s`, and count."""
    answers: list[Answer] = []
    broken: list[str] = []
    askers = [make(number) for number in range(streams)]

    async def work(number: int, asker: Asker) -> None:
        # Spread over all lengths: 1 … tokens.
        length, turn = 1 + number * tokens // streams, 0
        while True:
            answer = Answer(asked_s=time.monotonic())
            answers.append(answer)
            try:
                await asker.ask(number + turn * streams, length, answer)
            except Broken as failure:
                broken.append(str(failure))
                await asyncio.sleep(0.1)
            length, turn = tokens, turn + 1

    tasks = [asyncio.create_task(work(number, asker)) for number, asker in enumerate(askers)]
    await asyncio.sleep(warm_s)
    begin_s = time.monotonic()
    await asyncio.sleep(window_s)
    end_s = time.monotonic()
    await _end(tasks, [asker.close for asker in askers])
    return _level(answers, broken, streams=streams, tokens=tokens, begin_s=begin_s, end_s=end_s)


async def _end(tasks: Sequence[asyncio.Task[None]], closing: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for close in closing:
        await close()


def _level(
    answers: Sequence[Answer],
    broken: list[str],
    *,
    streams: int,
    tokens: int,
    begin_s: float,
    end_s: float,
) -> Level:
    # Of an answer a token is a share, whether its end is told apart from the last one or with it.
    heard = sum(begin_s <= at_s < end_s for answer in answers for at_s in answer.events_s[:tokens])
    whole = [one for one in answers if begin_s <= one.ended_s < end_s and one.first_s is not None]
    tokens_per_s = heard / (end_s - begin_s)
    return Level(
        streams=streams,
        requests_per_s=tokens_per_s / tokens,
        tokens_per_s=tokens_per_s,
        first_token_s=[one.first_s - one.asked_s for one in whole if one.first_s is not None],
        whole_s=[one.ended_s - one.asked_s for one in whole if len(one.events_s) >= tokens],
        broken=broken,
    )
