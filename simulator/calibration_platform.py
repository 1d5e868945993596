"""A real platform as calibration uses it: models deployed, single starts measured, a trace replayed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from typing import Any

import grpc
from rich.progress import Progress

from benchmarks.platform import Platform, PlatformFailed
from firstlight.rpc import host_pb2, host_pb2_grpc, store_pb2, store_pb2_grpc
from simulator.calibration import Measured, startup_s

PROMPT = "What is the capital of France?"
OUTPUT_TOKENS = 8
WARM_REQUESTS = 12
ANSWER_S = 300.0
# So long after another start its host makes its next engine.
AFTER_S = 1.5


class RealFleet:
    def __init__(self, platform: Platform, *, models: int, keep_alive_s: float, progress: Progress) -> None:
        self._platform = platform
        self._names = [f"calibrate-{index + 1}" for index in range(models)]
        self._keep_alive_s = keep_alive_s
        self._progress = progress
        self._prompt_tokens = 0

    def deploy(self, source: str) -> None:
        """Every model once on both hosts, from where a later start finds it in DRAM or on SSD."""
        task = self._progress.add_task("deploy and convert", total=len(self._names))
        known = {model["id"] for model in self._platform.get("/v1/models")["data"]}
        for name in self._names:
            settings = {"keep_alive_s": self._keep_alive_s, "max_instances": 2, "max_concurrency": 1}
            if name in known:
                self._platform.post(f"/admin/v1/models/{name}/scale", settings)
            else:
                self._platform.post("/admin/v1/models", {"name": name, "source": source, **settings})
            # Two at once take a place on each host.
            self._together([name, name])
            self._quiet()
            self._progress.advance(task)

    def measure(self, rounds: int, *, rest_s: float) -> Measured:
        """Starts one at a time, starts beside others, and warm requests. The hosts do nothing else meanwhile.

        `rest_s` before each start nobody asks anything, as in the trace: a machine that has just been polled
        has all it needs in its caches, and starts in two thirds of the time.
        """
        task = self._progress.add_task("starts, one by one and beside others", total=3 * rounds)
        warm = [self._ask(self._names[0]) for _ in range(WARM_REQUESTS + 1)][1:]
        warm_s = [ttft_s for ttft_s, _ in warm]
        found: dict[str, list[float]] = {"dram": [], "ssd": [], "beside": [], "after": []}
        # Any: JSON objects.
        recorded: dict[str, list[Any]] = {"dram": [], "ssd": []}
        for step in range(2 * rounds):
            tier, name = ("dram", "ssd")[step % 2], self._names[step % len(self._names)]
            self._quiet()
            if tier == "ssd":
                self._drop_from_dram()
            else:
                self._ask(name)
                self._quiet()
            time.sleep(rest_s)
            ttft_s, _ = self._ask(name)
            start = self._last_start(name)
            if start["tier"] == tier:
                found[tier].append(startup_s(ttft_s, warm_s))
                recorded[tier].append(start["actual"])
            self._progress.advance(task)
        for step in range(rounds):
            what, delay_s = (("beside", 0.0), ("after", AFTER_S))[step % 2]
            ttft_s, *others_s = self._pair(step, delay_s=delay_s, rest_s=rest_s)
            found[what] += [startup_s(one, warm_s) for one in (others_s if delay_s else (ttft_s, *others_s))]
            self._progress.advance(task)
        if not (found["dram"] and found["ssd"]):
            raise PlatformFailed("no start came from the tier it was meant to come from")
        return Measured(
            dram_s=tuple(found["dram"]),
            ssd_s=tuple(found["ssd"]),
            beside_s=tuple(found["beside"]),
            after_s=tuple(found["after"]),
            warm_s=tuple(warm_s),
            answer_s=tuple(answer_s for _, answer_s in warm),
            attach_s=tuple(float(one["attach_s"]) for one in recorded["dram"]),
            control_s=tuple(float(one["control_s"]) for one in recorded["dram"]),
            load_s=tuple(float(one["load_s"]) for one in recorded["ssd"]),
            size_bytes=self._size_bytes(),
            prompt_tokens=self._prompt_tokens,
            output_tokens=OUTPUT_TOKENS,
        )

    def _pair(self, step: int, *, delay_s: float, rest_s: float) -> list[float]:
        """Seconds to the first tokens of two models, the second asked for `delay_s` later, from DRAM both.

        Who did not start from there is left out, from the second's place on.
        """
        pair = [self._names[(step + one) % len(self._names)] for one in range(2)]
        # Each host holds one of them in DRAM then.
        self._together(pair)
        self._quiet()
        time.sleep(rest_s)
        sent = [(index * delay_s, name) for index, name in enumerate(pair)]
        ttft_s = self._send(sent, on_answer=lambda: None)
        return [
            one
            for one, name in zip(ttft_s, pair, strict=True)
            if name == pair[0] or self._last_start(name)["tier"] == "dram"
        ]

    def replay(self, trace: Sequence[tuple[float, int]]) -> list[float]:
        """Seconds to the first token of each request of the trace, sent when due; from SSDs at first."""
        self._quiet()
        task = self._progress.add_task("trace", total=len(trace))
        self._drop_from_dram()
        sent = [(at_s, self._names[model]) for at_s, model in trace]
        return self._send(sent, on_answer=lambda: self._progress.advance(task))

    def _send(self, sent: Sequence[tuple[float, str]], *, on_answer: Callable[[], None]) -> list[float]:
        """(seconds from now, model) each. Returns the seconds to their first tokens."""
        found: dict[int, float] = {}

        def send(index: int, name: str) -> None:
            found[index] = self._ask(name)[0]
            on_answer()

        threads = []
        began_s = time.monotonic()
        for index, (at_s, name) in enumerate(sent):
            # The trace's own clock; nothing else is waited for.
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            thread = threading.Thread(target=send, args=(index, name))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(ANSWER_S)
        if len(found) < len(sent):
            raise PlatformFailed(f"{len(sent) - len(found)} requests of the trace had no answer")
        return [found[index] for index in range(len(sent))]

    # Any: JSON objects.
    def starts(self, since_unix_s: float) -> list[dict[str, Any]]:
        """What the platform recorded of the starts that were decided since then, the latest first."""
        rows = self._platform.get("/admin/v1/starts?limit=200")["starts"]
        return [row for row in rows if row["decided_at_unix_s"] >= since_unix_s]

    def _ask(self, name: str) -> tuple[float, float]:
        """Seconds to the first token and to the last of one streamed answer."""
        body = {
            "model": name,
            "messages": [{"role": "user", "content": PROMPT}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        host, _, port = self._platform.api_url.removeprefix("http://").rpartition(":")
        connection = HTTPConnection(host, int(port), timeout=ANSWER_S)
        connection.connect()
        began_s, first_s = time.perf_counter(), None
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise PlatformFailed(f"{response.status} {response.read().decode()}")
        while line := response.readline().decode():
            event = json.loads(line[6:]) if line.startswith("data: {") else {}
            if "error" in event:
                raise PlatformFailed(f"the stream ended with {event['error']}")
            if (usage := event.get("usage")) is not None:
                self._prompt_tokens = int(usage["prompt_tokens"])
            if first_s is None and any(
                (choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()
            ):
                first_s = time.perf_counter() - began_s
        connection.close()
        if first_s is None:
            raise PlatformFailed("the stream ended without a token")
        return first_s, time.perf_counter() - began_s

    def _together(self, names: Sequence[str]) -> None:
        threads = [threading.Thread(target=self._ask, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ANSWER_S)

    def _quiet(self) -> None:
        """Until nothing runs, and every host has an engine in spare for each place."""
        self._platform.wait_for(self._is_quiet, what="all instances to end", deadline_s=60.0)

    def _is_quiet(self) -> bool:
        rows = self._platform.get("/admin/v1/instances?ended=0")["instances"]
        if any(row["state"] in ("starting", "ready", "draining") for row in rows):
            return False
        hosts = self._platform.get("/admin/v1/hosts")["hosts"]
        return all(_has_spare(host["host_address"]) for host in hosts)

    # Any: a JSON object.
    def _last_start(self, name: str) -> Any:
        found: list[Any] = []

        def recorded() -> bool:
            rows = self._platform.get(f"/admin/v1/starts?model={name}&limit=1")["starts"]
            found[:] = [row for row in rows if row["actual"]]
            return bool(found)

        self._platform.wait_for(recorded, what="the start to be recorded", deadline_s=20.0)
        return found[0]

    def _size_bytes(self) -> int:
        return int(self._platform.get(f"/admin/v1/models/{self._names[0]}")["size_bytes"])

    def _drop_from_dram(self) -> None:
        for host in self._platform.get("/admin/v1/hosts")["hosts"]:
            with grpc.insecure_channel(host["store_address"]) as channel:
                store = store_pb2_grpc.StoreStub(channel)
                for row in store.Inventory(store_pb2.InventoryRequest()).checkpoints:
                    if row.in_dram:
                        store.Remove(store_pb2.RemoveRequest(checkpoint_id=row.checkpoint_id, only_dram=True))
        self._platform.wait_for(
            lambda: all(
                row["tier"] != "dram"
                for host in self._platform.get("/admin/v1/hosts")["hosts"]
                for row in host["placements"]
            ),
            what="the fleet to know what left DRAM",
            deadline_s=20.0,
        )


def _has_spare(host_address: str) -> bool:
    with grpc.insecure_channel(host_address) as channel:
        engines = host_pb2_grpc.HostStub(channel).ListEngines(host_pb2.ListEnginesRequest()).engines
    return [engine.state for engine in engines] == ["spare"]
