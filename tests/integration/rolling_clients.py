"""Clients that stream without a pause over several APIs, as behind a load balancer."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

MODEL = "tiny"
TOKENS = 500
PROMPTS = ("Tell me of the sea.", "What is a fox?", "Explain rain.")


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finish_reason: str | None
    tokens: int


class RollingClients:
    """Every thread asks its one question over and over, and keeps what it was told. Use as a context manager.

    An API that takes no connection has been sent nothing, so the next one is asked: what every load balancer
    does. Whatever fails after that is a failed request.
    """

    def __init__(self, api_urls: list[str]) -> None:
        self._urls = itertools.cycle(api_urls)
        self._ends = threading.Event()
        self._pool = ThreadPoolExecutor(len(PROMPTS))
        self._loops: list[Future[None]] = []
        self.answers: dict[str, list[Answer]] = {prompt: [] for prompt in PROMPTS}
        self.answered = Counter()

    def __enter__(self) -> RollingClients:
        self._loops = [self._pool.submit(self._ask_on, prompt) for prompt in PROMPTS]
        return self

    def __exit__(self, *raised: object) -> None:
        self._ends.set()
        self._pool.shutdown()
        for loop in self._loops:
            loop.result()

    def are_well(self) -> bool:
        """Raises what ended one of them."""
        return not any(loop.done() and loop.result() is None for loop in self._loops)

    def _ask_on(self, prompt: str) -> None:
        while not self._ends.is_set():
            self.answers[prompt].append(self._ask_somewhere(prompt))
            self.answered.add()

    def _ask_somewhere(self, prompt: str) -> Answer:
        while True:
            try:
                return ask(next(self._urls), prompt)
            except httpx.ConnectError:
                continue


@dataclass(slots=True)
class Counter:
    """Counts from many threads."""

    value: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self) -> None:
        with self._lock:
            self.value += 1


def ask(api_url: str, prompt: str) -> Answer:
    """One streamed chat completion. Raises: HTTPStatusError, ValueError for an error within the stream."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, finish, tokens = "", None, 0
    url = f"{api_url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=120.0, trust_env=False) as response:
        if response.is_error:
            raise ValueError(f"{response.status_code}: {response.read().decode()}")
        for event in events(response):
            if "error" in event:
                raise ValueError(str(event))
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                finish = choice["finish_reason"] or finish
    return Answer(text, finish, tokens)


# Any: a chunk of a completion.
def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Server-sent events; httpx's own lines end at whatever Unicode calls an end of line, too."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                yield json.loads(line.removeprefix(b"data: "))
