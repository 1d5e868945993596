"""A GPU host's store and engines, for Prometheus: its agent asks them whenever somebody looks."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from firstlight.contracts.migrations import MovingInstance
from firstlight.domain.errors import FirstlightError
from firstlight.domain.names import HostId
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.engine_loads import EngineLoads
from firstlight.rpc.host_pb2 import EngineProcess, ListEnginesReply
from firstlight.rpc.store_pb2 import InventoryReply

ANSWERS_WITHIN_S = 2.0
ENGINE_STATES = ("starting", "spare", "attaching", "ready", "draining", "exited")


@dataclass(slots=True, kw_only=True)
class HostFigures:
    """`is_member` says whether the host has joined the fleet; False until its agent could know."""

    host_id: HostId
    store: StoreClient
    host: HostClient
    loads: EngineLoads
    is_member: Callable[[], bool] = lambda: False

    async def gather(self) -> Iterable[Metric]:
        """What answers tells its figures; what does not is told as down, without any."""
        stored, engines = await asyncio.gather(self._stored(), self._engines())
        found = [
            self._gauge("firstlight_host_member", "Joined the fleet.", {(): float(self.is_member())}),
            self._gauge("firstlight_store_up", "The store answers.", {(): float(stored is not None)}),
            self._gauge("firstlight_host_up", "The supervisor answers.", {(): float(engines is not None)}),
        ]
        if stored is not None:
            found += self.of_store(stored)
        if engines is not None:
            found += await self.of_engines(engines)
        return found

    async def _stored(self) -> InventoryReply | None:
        try:
            return await self.store.inventory(timeout_s=ANSWERS_WITHIN_S)
        except FirstlightError:
            return None

    async def _engines(self) -> ListEnginesReply | None:
        try:
            return await self.host.list_engines(timeout_s=ANSWERS_WITHIN_S)
        except FirstlightError:
            return None

    def of_store(self, told: InventoryReply) -> Iterable[Metric]:
        present = [one for one in told.checkpoints if not one.quarantined]
        yield self._gauge(
            "firstlight_store_capacity_bytes",
            "Room of a tier.",
            {("ssd",): told.ssd_capacity_bytes, ("dram",): told.dram_capacity_bytes},
            labels=("tier",),
        )
        yield self._gauge(
            "firstlight_store_used_bytes",
            "Taken of it.",
            {("ssd",): told.ssd_used_bytes, ("dram",): told.dram_used_bytes},
            labels=("tier",),
        )
        yield self._gauge(
            "firstlight_store_checkpoints",
            "Whole checkpoints in a tier.",
            {
                ("ssd",): sum(one.on_ssd for one in present),
                ("dram",): sum(one.in_dram for one in present),
            },
            labels=("tier",),
        )
        quarantined = len(told.checkpoints) - len(present)
        yield self._gauge("firstlight_store_quarantined", "Damaged copies, set aside.", {(): quarantined})
        yield self._gauge(
            "firstlight_store_queued_bytes", "Bytes that loads wait for.", {(): told.queued_bytes}
        )
        yield self._gauge(
            "firstlight_store_bandwidth_bytes_per_second",
            "What the store measured; 0: nothing yet, or no such device.",
            {("ssd_dram",): told.ssd_read_bytes_per_s, ("dram_gpu",): told.dram_to_gpu_bytes_per_s},
            labels=("edge",),
        )

    async def of_engines(self, told: ListEnginesReply) -> Iterable[Metric]:
        states = dict.fromkeys(ENGINE_STATES, 0) | Counter(one.state for one in told.engines)
        running = await self._requests([one for one in told.engines if one.state == "ready"])
        return [
            self._gauge("firstlight_host_gpus", "GPUs, or slots without.", {(): told.gpu_count}),
            self._gauge(
                "firstlight_engines",
                "Engine processes by state.",
                {(state,): number for state, number in states.items()},
                labels=("state",),
            ),
            self._gauge(
                "firstlight_spares_let_go",
                "No spare stands ready because none is worth keeping.",
                {(): float(told.lets_spares_go)},
            ),
            self._gauge(
                "firstlight_engine_requests",
                "Requests of a model's engines here.",
                {(model,): number for model, number in running.items()},
                labels=("model_name",),
            ),
        ]

    async def _requests(self, engines: Sequence[EngineProcess]) -> Mapping[str, int]:
        asked = [MovingInstance(one.instance_id, one.epoch, self.host_id, one.endpoint) for one in engines]
        found = await self.loads.ask(asked)
        running: Counter[str] = Counter()
        for engine in engines:
            load = found.get(engine.instance_id)
            running[engine.model] += load.requests if load is not None else 0
        return running

    def _gauge(
        self, name: str, text: str, values: Mapping[tuple[str, ...], float], *, labels: tuple[str, ...] = ()
    ) -> Metric:
        family = GaugeMetricFamily(name, text, labels=("host_id", *labels))
        for row, value in values.items():
            family.add_metric([self.host_id, *row], value)
        return family
