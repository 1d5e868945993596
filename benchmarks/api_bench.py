"""Our side of `benchmarks.api`: the platform with one instance a core, asked through the API and past it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from rich.progress import Progress

from benchmarks.api_client import Answer, HttpClient
from benchmarks.api_crowds import COMPLETIONS
from benchmarks.api_latency import Added, added_latency
from benchmarks.api_load import EngineAsker, Engines, HttpAsker, Level, drive
from benchmarks.hugging_face import export
from benchmarks.migration_client import QUESTIONS
from benchmarks.platform import Platform, PlatformFailed
from firstlight.rpc import store_pb2, store_pb2_grpc

# One instance a core, and a model with a single one.
MODEL, ONE = "bench-api", "bench-api-one"
# As the engine is asked; the peer knows no such thing, and is asked for texts that do not end so soon.
IGNORE_EOS = {"ignore_eos": True}
TOKENS = 16
PROMPTS = 64
PROMPT_WORDS = 12
STARTS_S = 180.0
OURS, DIRECT = "API", "engines directly"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long is measured, and how much."""

    levels: tuple[int, ...]
    window_s: float
    rounds: int
    idle_streams: int
    crowd: int

    def at(self, levels: tuple[int, ...], *, window_s: float) -> Pace:
        return replace(self, levels=levels, window_s=window_s)

    def warm_s(self, streams: int) -> float:
        """Until the first answers, of all lengths, are through."""
        return min(self.window_s, 1.0 + streams * 0.15)

    def window_of(self, streams: int) -> float:
        """Several times what a whole answer takes."""
        return self.window_s * (1 if streams < 64 else 2 if streams < 256 else 3)


class Bench:
    """The platform with the model on one instance a core."""

    def __init__(self, platform: Platform, source: str, progress: Progress, *, instances: int) -> None:
        self._platform = platform
        self._progress = progress
        with self.showing("deploy, convert and first starts"):
            self._keep(MODEL, source, instances)
            self._keep(ONE, source, 1)
        self._instances = self._ready(MODEL)
        [host] = platform.get("/admin/v1/hosts")["hosts"]
        self._checkpoint_id = platform.get(f"/admin/v1/models/{MODEL}")["checkpoint_id"]
        self.prompts = prompts()
        self._token_ids = token_ids_of(self.prompts, host["store_address"], self._checkpoint_id)

    def showing(self, what: str) -> Showing:
        return Showing(self._progress, what)

    def export(self, state_dir: Path, exported: Path) -> None:
        """The very weights that were measured, for the peer."""
        folders = state_dir.glob(f"**/{self._checkpoint_id}")
        export(next(folder for folder in folders if (folder / "manifest.json").exists()), exported)

    def measure(self, way: str, pace: Pace, streams: int) -> Level:
        with self.showing(f"{way}: {streams} streams"):
            return asyncio.run(self._drive(way, pace, streams))

    async def _drive(self, way: str, pace: Pace, streams: int) -> Level:
        engines = Engines(self._instances)
        try:
            return await drive(
                self._http if way == OURS else lambda n: EngineAsker(engines, n, self._token_ids),
                streams=streams,
                tokens=TOKENS,
                warm_s=pace.warm_s(streams),
                window_s=pace.window_of(streams),
            )
        finally:
            await engines.close()

    def _http(self, number: int) -> HttpAsker:
        return HttpAsker(self._platform.api_url, MODEL, self.prompts)

    async def added(self, rounds: int) -> Added:
        engines = Engines(self._ready(ONE))
        try:
            return await added_latency(
                lambda number: HttpAsker(self._platform.api_url, ONE, self.prompts, more=IGNORE_EOS),
                lambda number: EngineAsker(engines, number, self._token_ids),
                streams=8,
                rounds=rounds,
            )
        finally:
            await engines.close()

    async def texts(self) -> list[str]:
        return await texts_of(self._platform.api_url, MODEL, self.prompts[:4])

    def _keep(self, model: str, source: str, instances: int) -> None:
        """`instances` of it, from now on."""
        settings = {"max_concurrency": 256, "keep_alive_s": 3600}
        counts = {"min_instances": instances, "max_instances": instances}
        if model in {row["id"] for row in self._platform.get("/v1/models")["data"]}:
            self._platform.post(f"/admin/v1/models/{model}/scale", {**settings, **counts})
        else:
            body = {"name": model, "source": source, **settings, **counts}
            self._platform.post("/admin/v1/models", body)
        # The API starts so many of them by itself.
        self._platform.wait_for(
            lambda: len(self._ready(model)) == instances,
            what=f"{instances} instances of {model}",
            deadline_s=STARTS_S,
        )

    # Any: JSON rows.
    def _ready(self, model: str) -> list[Any]:
        rows = self._platform.get("/admin/v1/instances?ended=0")["instances"]
        return [row for row in rows if row["model"] == model and row["state"] == "ready"]


class Showing:
    """A line of progress while something is measured."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, what

    def __enter__(self) -> None:
        self._task = self._progress.add_task(self._what, total=None)

    def __exit__(self, *_: object) -> None:
        self._progress.remove_task(self._task)


def prompts() -> list[str]:
    """Texts of about the same length, none like another from its first words on."""
    words = " ".join(QUESTIONS).split()
    texts = []
    for number in range(PROMPTS):
        start = 7 * number % len(words)
        texts.append(f"{number}. " + " ".join((words[start:] + words)[:PROMPT_WORDS]))
    return texts


def token_ids_of(texts: Sequence[str], store_address: str, checkpoint_id: str) -> list[list[int]]:
    """The very ids the API makes of them."""
    from api.text.model_text import ModelText

    limit = [("grpc.max_receive_message_length", 64 << 20)]
    with grpc.insecure_channel(store_address, options=limit) as channel:
        request = store_pb2.GetFilesRequest(checkpoint_id=checkpoint_id)
        files = store_pb2_grpc.StoreStub(channel).GetFiles(request).files
    text = ModelText(dict(files))
    return [text.encode(one, add_special_tokens=True) for one in texts]


async def texts_of(url: str, model: str, texts: Sequence[str]) -> list[str]:
    """What a server makes of each prompt, greedily. Raises: Broken, PlatformFailed."""
    client = HttpClient(url)
    found = []
    for text in texts:
        body = {"model": model, "prompt": text, "max_tokens": TOKENS, "temperature": 0}
        answer: Answer = await client.post(COMPLETIONS, body)
        if answer.status != 200:
            raise PlatformFailed(f"{answer.status}: {answer.body[-300:]!r}")
        found.append(json.loads(answer.body)["choices"][0]["text"])
    await client.close()
    return found
