"""A cold start goes on through the death of any one process of the control plane, and answers its client."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from openai import OpenAI, OpenAIError

from benchmarks.platform import Platform
from benchmarks.rate_limited_proxy import RateLimitedProxy
from tests.integration.store_processes import command_line, descendants
from tests.integration.test_store_sources import folder_server
from tests.platform_fixtures import running_platform, tiny_source

ANSWER_WITHIN_S = 120.0
LINK_S = 4.0


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running_platform(tmp_path_factory.mktemp("chaos")) as running:
        yield running


class Request(threading.Thread):
    """One chat of an ordinary client that does not retry by itself."""

    def __init__(self, platform: Platform, model: str) -> None:
        super().__init__(daemon=True)
        self._client = OpenAI(
            base_url=f"{platform.api_url}/v1", api_key="none", max_retries=0, timeout=ANSWER_WITHIN_S
        )
        self._model = model
        self.tokens: int | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        try:
            answer = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": "fox"}], max_tokens=4, temperature=0
            )
            assert answer.usage is not None
            self.tokens = answer.usage.completion_tokens
        except (OpenAIError, AssertionError) as failure:
            self.failure = failure


def processes_named(platform: Platform, words: str) -> list[int]:
    return [pid for pid in descendants(platform.launcher_pid) if words in command_line(pid)]


def starting_host(platform: Platform, model: str) -> str | None:
    rows = platform.get(f"/admin/v1/instances?model={model}")["instances"]
    return next((row["host_id"] for row in rows if row["state"] == "starting"), None)


@pytest.mark.parametrize("victim", ["control-worker", "host-agent", "temporal server", "store"])
def test_a_start_survives_the_death_of(victim: str, platform: Platform, tmp_path: Path) -> None:
    # A name of its own each time: one that failed half-way may be looked at twice.
    model = f"tiny-{victim.replace(' ', '-')}-{uuid4().hex[:6]}"
    # A link so slow that the weights take seconds, however quick this machine is.
    folder = tiny_source(tmp_path / "hf")
    weights_bytes = (folder / "model.safetensors").stat().st_size
    with folder_server(folder) as server, RateLimitedProxy(server) as link:
        platform.post("/admin/v1/models", {"name": model, "source": f"{link.endpoint}/plain/tiny"})
        link.bytes_per_s = weights_bytes / LINK_S
        _kill_midway(platform, model, victim)


@pytest.mark.parametrize("sleeper", ["control-worker", "temporal server", "host-agent"])
def test_a_start_from_dram_answers_before_its_workflow_gets_anywhere(
    sleeper: str, platform: Platform, tmp_path: Path
) -> None:
    model = _resting_in_dram(platform, tmp_path)
    with _asleep(processes_named(platform, _words(sleeper))):
        request = Request(platform, model)
        request.start()
        request.join(30)
        assert request.tokens == 4, f"{request.failure}\n{platform.log_end()}"
        assert _states(platform, model) == {"stopped", "starting"}, "its workflow stands still"
    platform.wait_for(lambda: "ready" in _states(platform, model), what="the route", deadline_s=60)
    again = Request(platform, model)
    again.start()
    again.join(ANSWER_WITHIN_S)
    assert again.tokens == 4
    _nothing_left_behind(platform, model)


def test_an_engine_bound_ahead_by_an_api_that_died_is_nobodys_for_long(
    platform: Platform, tmp_path: Path
) -> None:
    model = _resting_in_dram(platform, tmp_path)
    with _asleep(processes_named(platform, _words("temporal server"))):
        request = Request(platform, model)
        request.start()
        request.join(30)
        assert request.tokens == 4, f"{request.failure}\n{platform.log_end()}"
        # Its workflow has not begun, and whoever asked for it is no more.
        [api] = processes_named(platform, "serve api")
        os.kill(api, signal.SIGKILL)
        platform.wait_for(lambda: not Path(f"/proc/{api}").exists(), what="its end", deadline_s=10)
    platform.wait_for(lambda: _is_up(platform), what="another API", deadline_s=60)
    again = Request(platform, model)
    again.start()
    again.join(ANSWER_WITHIN_S)
    assert again.tokens == 4, f"{again.failure}\n{platform.log_end()}"
    _nothing_left_behind(platform, model)


def _is_up(platform: Platform) -> bool:
    try:
        return platform.http.get(f"{platform.api_url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _resting_in_dram(platform: Platform, tmp_path: Path) -> str:
    """The name of a model that has served, rests, and would serve for long."""
    model = f"tiny-{uuid4().hex[:6]}"
    source = tiny_source(tmp_path / "hf").as_uri()
    platform.post("/admin/v1/models", {"name": model, "source": source, "keep_alive_s": 0.1})
    first = Request(platform, model)
    first.start()
    first.join(ANSWER_WITHIN_S)
    assert first.failure is None, f"{first.failure}\n{platform.log_end()}"
    platform.wait_for(lambda: _states(platform, model) == {"stopped"}, what="the end of it", deadline_s=60)
    platform.post(f"/admin/v1/models/{model}/scale", {"keep_alive_s": 600})
    return model


def _states(platform: Platform, model: str) -> set[str]:
    return {row["state"] for row in platform.get(f"/admin/v1/instances?model={model}")["instances"]}


@contextmanager
def _asleep(pids: list[int]) -> Iterator[None]:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _kill_midway(platform: Platform, model: str, victim: str) -> None:
    request = Request(platform, model)
    request.start()
    platform.wait_for(lambda: starting_host(platform, model) is not None, what="the start", deadline_s=30)
    host = starting_host(platform, model)
    # Anywhere in the link's first second is in the middle of the start.
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    time.sleep(random.Random(seed).uniform(0.05, 1.0))
    assert request.is_alive(), "the start was over before anything was killed"
    killed = _kill(platform, victim, str(host))
    request.join(ANSWER_WITHIN_S)
    assert request.failure is None, f"killed {killed}: {request.failure}\n{platform.log_end()}"
    assert request.tokens == 4
    _nothing_left_behind(platform, model)


def _words(process: str) -> str:
    return {
        "control-worker": "serve control-worker",
        "host-agent": "serve host-agent",
        "temporal server": "server start-dev",
        "store": "gpu_worker.store",
    }[process]


def _kill(platform: Platform, victim: str, host: str) -> list[int]:
    pids = processes_named(platform, _words(victim))
    assert pids, (
        f"no process of {victim} among {[command_line(p) for p in descendants(platform.launcher_pid)]}"
    )
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return pids


def _nothing_left_behind(platform: Platform, model: str) -> None:
    """Exactly one instance serves the model, and its GPUs are all that is taken for it."""

    def live() -> list[dict[str, Any]]:
        rows = platform.get(f"/admin/v1/instances?model={model}")["instances"]
        return [row for row in rows if row["state"] in ("starting", "ready", "draining")]

    # An engine that was bound ahead has answered before its workflow says so.
    platform.wait_for(
        lambda: all(row["state"] == "ready" for row in live()), what="what starts to be ready", deadline_s=30
    )
    assert [row["state"] for row in live()] == ["ready"]
    held = [
        gpu
        for host in platform.get("/admin/v1/hosts")["hosts"]
        for gpu in host["gpus"]
        if gpu["model"] == model
    ]
    assert len(held) == 1
    response = platform.http.delete(f"{platform.api_url}/admin/v1/models/{model}")
    assert response.status_code in (200, 202)
    platform.wait_for(
        lambda: platform.http.get(f"{platform.api_url}/admin/v1/models/{model}").status_code == 404,
        what="the model to be gone",
        deadline_s=60,
    )
    assert not any(
        gpu["model"] == model for host in platform.get("/admin/v1/hosts")["hosts"] for gpu in host["gpus"]
    )
