"""Crowds at the API's door: streams that wait for a start, and more requests than every limit lets in."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.api_client import Answer, Broken, HttpClient
from benchmarks.platform import PlatformFailed

COMPLETIONS = "/v1/completions"
# Told in an event stream that has begun already, where no status can be told any more.
OVERLOAD_CODES = (b"no_capacity", b"start_timeout", b"queue_full", b"start_failed", b"instance_draining")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What `streams` event streams that only wait cost the process that holds them."""

    streams: int
    before_bytes: int
    after_bytes: int
    signs: int
    left_bytes: int

    @property
    def grown_bytes(self) -> int:
        return self.after_bytes - self.before_bytes


@dataclass(slots=True)
class Tally:
    """How the requests of one crowd ended: `wrong` are all that are neither served nor told to come again."""

    name: str
    asked: int
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, answer: Answer | Broken) -> None:
        end, is_right = _end_of(answer)
        self.ends[end] += 1
        if not is_right:
            self.wrong.append(end)


def _end_of(answer: Answer | Broken) -> tuple[str, bool]:
    if isinstance(answer, Broken):
        return f"broken: {str(answer)[:120]}", False
    if answer.status in (429, 503):
        has_time = answer.headers.get("retry-after", "").isdigit()
        return f"{answer.status}" + ("" if has_time else " without Retry-After"), has_time
    if answer.status == 200 and b'"error"' in answer.body:
        is_overload = any(code in answer.body for code in OVERLOAD_CODES)
        return "200, then " + ("overload" if is_overload else repr(answer.body[-200:])), is_overload
    return str(answer.status), answer.status == 200


def memory_of(pid: int) -> int:
    """Resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise PlatformFailed(f"process {pid} tells no memory")


async def hold_waiting(url: str, model: str, *, pid: int, streams: int, within_s: float) -> Waiting:
    """Open `streams` that wait for `model`, until each has had two signs of life; then leave them all."""
    clients = [HttpClient(url) for _ in range(streams)]
    answers = [Answer(asked_s=0.0) for _ in range(streams)]
    before = memory_of(pid)
    body = {"model": model, "prompt": "Once", "max_tokens": 8, "stream": True}
    tasks = [
        asyncio.create_task(client.post(COMPLETIONS, body, into=answer))
        for client, answer in zip(clients, answers, strict=True)
    ]
    try:
        end_s = time.monotonic() + within_s
        while min(answer.body.count(b"\n\n") for answer in answers) < 2:
            if ended := next((task for task in tasks if task.done()), None):
                raise PlatformFailed(f"a stream that should wait has ended: {ended}")
            if time.monotonic() > end_s:
                raise PlatformFailed(f"not all of {streams} waiting streams gave signs of life")
            await asyncio.sleep(0.25)
        after = memory_of(pid)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(2.0)
    signs = sum(answer.body.count(b"\n\n") for answer in answers)
    return Waiting(streams, before, after, signs, memory_of(pid))


async def stampede(
    url: str, name: str, bodies: Sequence[Mapping[str, Any]], *, key: str | None = None
) -> Tally:
    """All of `bodies` at once, each on a connection of its own, to their ends."""
    tally = Tally(name, len(bodies))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    began_s = time.monotonic()

    async def ask(body: Mapping[str, Any]) -> None:
        client = HttpClient(url, headers=headers)
        try:
            tally.add(await client.post(COMPLETIONS, body))
        except Broken as broken:
            tally.add(broken)
        finally:
            await client.close()

    await asyncio.gather(*(ask(body) for body in bodies))
    tally.seconds = time.monotonic() - began_s
    return tally


@dataclass(frozen=True, slots=True)
class Crowds:
    """All crowds, and how many streams came out otherwise with a crowd beside them."""

    tallies: list[Tally]
    changed: int
