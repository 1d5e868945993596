"""A client that notes when each token came, and prompts of an exact length for it to send."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.platform import PlatformFailed
from firstlight.rpc import store_pb2, store_pb2_grpc

# Used without a file of questions.
QUESTIONS = (
    "A baker makes 24 rolls an hour. How many does she make in a day of seven hours?",
    "Tom has three boxes with twelve pencils each and gives away nine. How many are left?",
    "A train covers 180 miles in three hours. How far does it get in five?",
    "A garden is 12 feet wide and 30 feet long. How many feet of fence does it need?",
)


def read_questions(path: Path | None) -> list[str]:
    """The `question` of every line of a JSONL file such as GSM8K's, or a small set of our own."""
    if path is None:
        return list(QUESTIONS)
    return [json.loads(line)["question"] for line in path.read_text().splitlines() if line.strip()]


@dataclass(frozen=True, slots=True)
class Asked:
    """One generation: greedy with temperature 0, sampled by its seed otherwise."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(slots=True)
class Heard:
    """Every token's text and when it came, in monotonic seconds; `text` is what a client shows."""

    asked_s: float
    tokens: list[str] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0

    @property
    def first_token_s(self) -> float:
        return self.at_s[0] - self.asked_s

    def gaps_s(self) -> list[float]:
        """Times between tokens; several that came together count as one arrival."""
        return [
            later - sooner for sooner, later in zip(self.at_s, self.at_s[1:], strict=False) if later > sooner
        ]

    def gaps_between(self, began_s: float, ended_s: float) -> list[float]:
        """Those of which any part fell into this time."""
        arrivals = sorted(set(self.at_s))
        return [
            later - sooner for sooner, later in pairwise(arrivals) if later > began_s and sooner < ended_s
        ]

    def median_gap_s(self) -> float:
        return median(self.gaps_s())

    def is_same_as(self, other: Heard) -> bool:
        mine = (self.tokens, self.text, self.finish_reason, self.completion_tokens)
        return mine == (other.tokens, other.text, other.finish_reason, other.completion_tokens)


class Stream:
    """One request on a thread of its own."""

    def __init__(self, api_url: str, model: str, asked: Asked) -> None:
        self._url = f"{api_url}/v1/completions"
        self._model = model
        self.asked = asked
        self.heard = Heard(asked_s=time.monotonic())
        self._failure: BaseException | None = None
        self._has_left = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait_tokens(self, count: int, *, within_s: float = 300.0) -> None:
        """Until so many tokens came. Raises: PlatformFailed when the stream ends or stalls before."""
        with self._changed:
            is_there = self._changed.wait_for(
                lambda: len(self.heard.tokens) >= count or not self._thread.is_alive(), within_s
            )
        if not is_there or len(self.heard.tokens) < count:
            raise PlatformFailed(f"{len(self.heard.tokens)} of {count} tokens came: {self._failure}")

    def result(self) -> Heard:
        """Raises: PlatformFailed for a stream that broke."""
        self._thread.join(600)
        if self._failure is not None or self.heard.finish_reason is None:
            raise PlatformFailed(f"a stream broke off: {self._failure}") from self._failure
        return self.heard

    def hang_up(self) -> None:
        """Leave at the next token, as a client does that has read enough; what was heard stays."""
        self._has_left = True
        self._thread.join(600)

    def wait_end(self) -> None:
        """Until it is over, well or not."""
        self._thread.join(600)

    def _run(self) -> None:
        asked = self.asked
        body = {
            "model": self._model,
            "prompt": list(asked.prompt),
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            "seed": asked.seed,
            "ignore_eos": True,
            "logprobs": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            with httpx.stream("POST", self._url, json=body, timeout=600, trust_env=False) as response:
                if response.is_error:
                    response.read()
                    raise PlatformFailed(f"{response.status_code}: {response.text[:300]}")
                for line in response.iter_lines():
                    self._take(line)
                    if self._has_left:
                        break
        except (httpx.HTTPError, PlatformFailed, ValueError) as failure:
            self._failure = failure
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take(self, line: str) -> None:
        now_s = time.monotonic()
        if not line.startswith("data: ") or line == "data: [DONE]":
            return
        event: dict[str, Any] = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise PlatformFailed(f"the stream ended with {event['error']}")
        with self._changed:
            if event.get("usage"):
                self.heard.completion_tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                tokens: Sequence[str] = (choice.get("logprobs") or {}).get("tokens", [])
                self.heard.tokens += tokens
                self.heard.at_s += [now_s] * len(tokens)
                self.heard.text += choice["text"]
                self.heard.finish_reason = choice["finish_reason"] or self.heard.finish_reason
            self._changed.notify_all()


class Prompts:
    """Token ids of questions strung together, cut at an exact length."""

    def __init__(self, store_address: str, checkpoint_id: str, questions: Sequence[str]) -> None:
        import grpc
        from tokenizers import Tokenizer

        with grpc.insecure_channel(
            store_address, options=[("grpc.max_receive_message_length", 64 << 20)]
        ) as channel:
            request = store_pb2.GetFilesRequest(checkpoint_id=checkpoint_id)
            files = store_pb2_grpc.StoreStub(channel).GetFiles(request).files
        self._tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
        self._questions = list(questions)

    def of_length(self, tokens: int, *, start: int = 0) -> tuple[int, ...]:
        ids: list[int] = []
        number = start
        while len(ids) < tokens:
            ids += self._tokenizer.encode(self._questions[number % len(self._questions)] + "\n").ids
            number += 1
        return tuple(ids[:tokens])
