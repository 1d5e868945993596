"""The two crowds of `benchmarks.api`: those who wait for a start, and those who come past every limit."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.api_client import Answer, HttpClient
from benchmarks.api_crowds import COMPLETIONS, Crowds, Tally, Waiting, hold_waiting, stampede
from benchmarks.platform import Platform, PlatformFailed
from benchmarks.stalling_server import StallingServer

STALLED, CROWDED, SECOND, THIRD = "bench-stalled", "bench-crowded", "bench-second", "bench-third"
KEY = "bench-key-of-the-settings"
QUEUE = 64
PLACES = 4
# Streams that run through the stampede, one place each, and are compared with undisturbed ones.
WITNESSES = 2
WITNESS_TOKENS = 100
HOLD_TOKENS = 1500
WARM_S = 240.0
_TEXT = re.compile(rb'"text":("(?:[^"\\]|\\.)*")')


async def wait_for_a_start(platform: Platform, file: Path, *, streams: int) -> Waiting:
    """Streams that wait for a model whose source gives no bytes."""
    with StallingServer(file) as source:
        platform.post("/admin/v1/models", {"name": STALLED, "source": source.url})
        source.is_stalling.set()
        try:
            return await hold_waiting(
                platform.api_url,
                STALLED,
                pid=platform.record.processes["api"].pid,
                streams=streams,
                within_s=120.0,
            )
        finally:
            platform.http.delete(f"{platform.api_url}/admin/v1/models/{STALLED}?force=true")


def drive_past_limits(*, source: str, state_dir: Path, crowd: int) -> Crowds:
    """A platform with small limits, and crowds past each of them."""
    env = {
        "FIRSTLIGHT_HOST_IDS": "host-a",
        "FIRSTLIGHT_GPUS_PER_HOST": "2",
        "FIRSTLIGHT_MAX_QUEUE_PER_MODEL": str(QUEUE),
        "FIRSTLIGHT_START_TIMEOUT_S": "20",
        "FIRSTLIGHT_API_KEYS": KEY,
        "FIRSTLIGHT_LOG_LEVEL": "WARNING",
    }
    with Platform(state_dir, env=env) as platform:
        platform.http.headers["authorization"] = f"Bearer {KEY}"
        for model in (CROWDED, SECOND, THIRD):
            _deploy(platform, model, source)
        return asyncio.run(_crowds(platform, crowd))


def _deploy(platform: Platform, model: str, source: str) -> None:
    if model not in {row["id"] for row in platform.get("/v1/models")["data"]}:
        settings = {"max_instances": 1, "max_concurrency": PLACES, "keep_alive_s": 600}
        platform.post("/admin/v1/models", {"name": model, "source": source, **settings})


async def _crowds(platform: Platform, crowd: int) -> Crowds:
    url = platform.api_url
    for model in (CROWDED, SECOND):
        await _warm(url, model)
    undisturbed = _Witnesses(url)
    await undisturbed.has_begun()
    before = await undisturbed.texts()
    witnesses = _Witnesses(url)
    await witnesses.has_begun()
    asked = [_body(CROWDED, 2, is_stream=bool(number % 2)) for number in range(crowd)]
    full = await stampede(url, "one model, queue full", asked, key=KEY)
    changed = sum(one != other for one, other in zip(before, await witnesses.texts(), strict=True))
    tallies = [full, await _no_gpus(url), await _limited_key(platform), await _limited_rate(platform)]
    return Crowds(tallies, changed)


async def _no_gpus(url: str) -> Tally:
    """Both GPUs are busy, and a third model is asked for."""
    holding = [asyncio.create_task(_post(url, _body(model, HOLD_TOKENS))) for model in (CROWDED, SECOND)]
    try:
        # Its first token has come once a short one behind it is through.
        for model in (CROWDED, SECOND):
            await _post(url, _body(model, 1))
        asked = [_body(THIRD, 2, is_stream=bool(n % 2)) for n in range(QUEUE + 16)]
        return await stampede(url, "no GPU is free", asked, key=KEY)
    finally:
        for task in holding:
            task.cancel()
        await asyncio.gather(*holding, return_exceptions=True)


async def _limited_key(platform: Platform) -> Tally:
    made = platform.post("/admin/v1/keys", {"name": "few at once", "max_concurrent": 2})
    asked = [_body(CROWDED, 8) for _ in range(50)]
    return await stampede(platform.api_url, "a key's requests at once", asked, key=made["key"])


async def _limited_rate(platform: Platform) -> Tally:
    made = platform.post("/admin/v1/keys", {"name": "few a minute", "requests_per_minute": 5})
    asked = [_body(CROWDED, 1) for _ in range(50)]
    return await stampede(platform.api_url, "a key's requests a minute", asked, key=made["key"])


async def _warm(url: str, model: str) -> None:
    """Until it answers: its first start converts it, which takes longer than a request waits here."""
    end_s = time.monotonic() + WARM_S
    while True:
        try:
            await _post(url, _body(model, 1))
            return
        except PlatformFailed:
            if time.monotonic() > end_s:
                raise
            await asyncio.sleep(1.0)


class _Witnesses:
    """Streams that begin before a crowd comes, and end after it."""

    def __init__(self, url: str) -> None:
        self._answers = [Answer(asked_s=0.0) for _ in range(WITNESSES)]
        bodies = [_body(CROWDED, WITNESS_TOKENS, number, is_stream=True) for number in range(WITNESSES)]
        self._tasks = [
            asyncio.create_task(_post(url, body, into=answer))
            for body, answer in zip(bodies, self._answers, strict=True)
        ]

    async def has_begun(self) -> None:
        """Every one of them has given a token. Raises: PlatformFailed, Broken."""
        while any(answer.first_s is None for answer in self._answers):
            if ended := [task for task in self._tasks if task.done()]:
                ended[0].result()
            await asyncio.sleep(0.02)

    async def texts(self) -> list[list[bytes]]:
        """Their tokens' texts. Raises: PlatformFailed, Broken."""
        answers = await asyncio.gather(*self._tasks)
        return [_TEXT.findall(answer.body) for answer in answers]


# Any: a JSON body.
def _body(model: str, tokens: int, number: int = 0, *, is_stream: bool = False) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": f"{number} green bottles hang on the wall, and",
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": is_stream,
    }


async def _post(url: str, body: Mapping[str, Any], *, into: Answer | None = None) -> Answer:
    client = HttpClient(url, headers={"authorization": f"Bearer {KEY}"})
    answer = await client.post(COMPLETIONS, body, into=into)
    await client.close()
    if answer.status != 200 or b'"error"' in answer.body:
        raise PlatformFailed(f"{answer.status}: {answer.body[-300:]!r}")
    return answer
