"""Activities that follow a script: subclasses of the contracts, for workflows under real Temporal.

A script is a queue of outcomes per activity: an error is raised, a receipt returned, a function called.
An empty queue means that all is well.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any

from temporalio import activity

from activities.errors import answering
from activities.heartbeat import beating
from firstlight.contracts import draining, freeing, hosts, instances, migrations, starts
from firstlight.contracts.activities import ControlActivities, HostActivities
from firstlight.domain.errors import FirstlightError

Outcome = FirstlightError | Callable[[Any], Awaitable[Any]] | object


class Endings:
    """What ends a watch, by key; a watch waits for its own."""

    def __init__(self) -> None:
        self._queues: dict[object, asyncio.Queue[str]] = defaultdict(asyncio.Queue)
        self._waiting: set[object] = set()

    def end(self, key: object, how: str) -> None:
        self._queues[key].put_nowait(how)

    async def wait(self, key: object) -> str:
        self._waiting.add(key)
        try:
            return await self._queues[key].get()
        finally:
            self._waiting.discard(key)

    def is_waiting(self, key: object) -> bool:
        """Whether a watch is there and everything told so far was heard."""
        return key in self._waiting and self._queues[key].empty()


class Script:
    """What happens at each call, and what was called."""

    def __init__(self) -> None:
        self.outcomes: dict[str, deque[Outcome]] = defaultdict(deque)
        self.calls: list[tuple[str, Any]] = []

    def then(self, name: str, *outcomes: Outcome) -> None:
        self.outcomes[name].extend(outcomes)

    def requests(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]

    async def play(self, name: str, request: Any, default: object) -> Any:
        self.calls.append((name, request))
        outcome = self.outcomes[name].popleft() if self.outcomes[name] else default
        if isinstance(outcome, FirstlightError):
            raise outcome
        return await outcome(request) if callable(outcome) else outcome


class ScriptedControl(ControlActivities):
    def __init__(self) -> None:
        self.script = Script()
        # By registration: expired, superseded, elapsed.
        self.leases = Endings()

    @activity.defn(name="replan_start")
    @answering
    async def replan_start(self, request: starts.ReplanInput) -> starts.ReplanReceipt:
        none = starts.ReplanReceipt(plan=None, reason="no other host")
        return await self.script.play("replan_start", request, none)

    @activity.defn(name="abandon_start")
    @answering
    async def abandon_start(self, request: starts.AbandonInput) -> starts.AbandonReceipt:
        return await self.script.play("abandon_start", request, starts.AbandonReceipt())

    @activity.defn(name="record_start")
    @answering
    async def record_start(self, request: starts.RecordStartInput) -> starts.Nothing:
        return await self.script.play("record_start", request, starts.Nothing())

    @activity.defn(name="begin_drain")
    @answering
    async def begin_drain(self, request: instances.BeginDrainInput) -> instances.BeginDrainReceipt:
        draining = instances.BeginDrainReceipt(draining=True, state="draining")
        return await self.script.play("begin_drain", request, draining)

    @activity.defn(name="finish_instance")
    @answering
    async def finish_instance(self, request: instances.FinishInput) -> starts.Nothing:
        return await self.script.play("finish_instance", request, starts.Nothing())

    @activity.defn(name="watch_lease")
    @answering
    async def watch_lease(self, request: hosts.LeaseWatchInput) -> hosts.LeaseWatchReceipt:
        self.script.calls.append(("watch_lease", request))
        async with beating("lease"):
            return hosts.LeaseWatchReceipt(await self.leases.wait(request.registration))

    @activity.defn(name="fail_host")
    @answering
    async def fail_host(self, request: hosts.FailHostInput) -> hosts.FailHostReceipt:
        return await self.script.play("fail_host", request, hosts.FailHostReceipt(marked=True))

    @activity.defn(name="list_hosts")
    @answering
    async def list_hosts(self, request: hosts.ReconcileInput) -> hosts.HostList:
        return await self.script.play("list_hosts", request, hosts.HostList())

    @activity.defn(name="mend_host")
    @answering
    async def mend_host(self, request: hosts.MendInput) -> hosts.MendReceipt:
        return await self.script.play("mend_host", request, hosts.MendReceipt())

    @activity.defn(name="serve_on")
    @answering
    async def serve_on(self, request: migrations.ServeOnInput) -> starts.Nothing:
        return await self.script.play("serve_on", request, starts.Nothing())

    @activity.defn(name="consolidate_fleet")
    @answering
    async def consolidate_fleet(self, request: hosts.ConsolidateInput) -> hosts.ConsolidateReceipt:
        return await self.script.play("consolidate_fleet", request, hosts.ConsolidateReceipt())

    @activity.defn(name="evict_instance")
    @answering
    async def evict_instance(self, request: freeing.EvictInput) -> starts.Nothing:
        return await self.script.play("evict_instance", request, starts.Nothing())

    @activity.defn(name="join_migration")
    @answering
    async def join_migration(self, request: freeing.JoinMigrationInput) -> starts.Nothing:
        return await self.script.play("join_migration", request, starts.Nothing())

    @activity.defn(name="move_off")
    @answering
    async def move_off(self, request: draining.DrainInput) -> draining.MoveOffReceipt:
        return await self.script.play("move_off", request, draining.MoveOffReceipt(left=0))

    @activity.defn(name="finish_migration")
    @answering
    async def finish_migration(
        self, request: migrations.FinishMigrationInput
    ) -> migrations.FinishMigrationReceipt:
        return await self.script.play("finish_migration", request, migrations.FinishMigrationReceipt())


class ScriptedHost(HostActivities):
    def __init__(self, host_id: str) -> None:
        self.host_id = host_id
        self.script = Script()
        # By instance: idle, exited, elapsed.
        self.endings = Endings()
        self.cancelled: list[str] = []

    @activity.defn(name="download_checkpoint")
    @answering
    async def download_checkpoint(self, request: starts.DownloadInput) -> starts.DownloadReceipt:
        receipt = starts.DownloadReceipt(
            checkpoint_id=request.checkpoint.checkpoint_id,
            manifest_digest="d" * 64,
            size_bytes=540_000_000,
            source_bytes=270_000_000,
            elapsed_s=0.5,
            was_present=False,
        )
        async with beating("download"):
            return await self.script.play("download_checkpoint", request, receipt)

    @activity.defn(name="bring_up")
    @answering
    async def bring_up(self, request: starts.BringUpInput) -> starts.BringUpReceipt:
        phases = starts.PhaseSeconds(
            download_s=request.download_s,
            load_s=0.31,
            attach_s=0.07,
            control_s=0.04,
            total_s=request.download_s + 0.42,
            tier="ssd",
            bytes_moved=request.plan.checkpoint.size_bytes,
        )
        try:
            async with beating("load"):
                receipt = starts.BringUpReceipt(endpoint="127.0.0.1:4000", phases=phases)
                return await self.script.play("bring_up", request, receipt)
        except asyncio.CancelledError:
            self.cancelled.append(request.plan.instance_id)
            raise

    @activity.defn(name="watch_instance")
    @answering
    async def watch_instance(self, request: instances.WatchInput) -> instances.WatchReceipt:
        self.script.calls.append(("watch_instance", request))
        async with beating("watch"):
            ended_by = await self.endings.wait(request.instance_id)
        return instances.WatchReceipt(ended_by, idle_s=request.keep_alive_s)

    @activity.defn(name="stop_instance")
    @answering
    async def stop_instance(self, request: instances.StopInstanceInput) -> starts.Nothing:
        return await self.script.play("stop_instance", request, starts.Nothing())

    @activity.defn(name="move_requests")
    @answering
    async def move_requests(self, request: migrations.MoveInput) -> migrations.MoveReceipt:
        rounds = [migrations.RoundRow(1, 2, 600, 9_000_000, 0.2), migrations.RoundRow(2, 2, 9, 140_000, 0.01)]
        receipt = migrations.MoveReceipt(rounds=rounds, handed_over=2, held_s=0.012, elapsed_s=0.4)
        async with beating("move"):
            return await self.script.play("move_requests", request, receipt)

    @activity.defn(name="report_inventory")
    @answering
    async def report_inventory(self, request: hosts.InventoryInput) -> hosts.HostReport:
        return await self.script.play("report_inventory", request, hosts.HostReport(host_id=request.host_id))
