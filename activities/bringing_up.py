"""bring_up: bytes to DRAM, an engine bound to them, the route published. The one step a client waits for.

A dead attempt may have left any prefix of the steps done. Each is idempotent at its owner: the store joins
a load, the supervisor returns the engine it has bound for (instance, epoch), publishing twice is one row.
The epoch fences off an attempt whose plan was replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from activities.heartbeat import Heart, Progress
from activities.patience import until_database_answers
from firstlight.contracts.starts import BringUpInput, BringUpReceipt, PhaseSeconds, StartPlan
from firstlight.database.connection import Database
from firstlight.database.starts_repository import publish_route
from firstlight.domain.errors import FirstlightError, ModelBeingDeleted, StaleEpoch
from firstlight.rpc.clients import HostClient, StoreClient

# Statuses that show the checkpoint's bytes themselves did not move in this start.
RESIDENT = "dram"


@dataclass(frozen=True, slots=True)
class BringUp:
    store: StoreClient
    host: HostClient
    database: Database

    async def run(self, request: BringUpInput, heart: Heart, earlier: Progress | None) -> BringUpReceipt:
        """`earlier`: what an attempt that died had reached. Raises: FirstlightError."""
        plan = request.plan
        # Best effort and not waited for: attach joins whatever it has prepared.
        hint = asyncio.create_task(self._prepare_engine(plan))
        try:
            load = await self._load(plan, heart, earlier)
            heart.note(phase="attach")
            endpoint, attach_s = await self._attach(plan)
        finally:
            hint.cancel()
        heart.note(phase="publish")
        await self._publish(plan, endpoint)
        return BringUpReceipt(endpoint=endpoint, phases=_phases(request, load, attach_s))

    async def _prepare_engine(self, plan: StartPlan) -> None:
        with suppress(FirstlightError):
            await self.host.prepare_engine(
                checkpoint_id=plan.checkpoint.checkpoint_id, instance_id=plan.instance_id
            )

    async def _load(self, plan: StartPlan, heart: Heart, earlier: Progress | None) -> Progress:
        heart.note(phase="load", bytes_total=plan.checkpoint.size_bytes)
        async for message in self.store.load(plan.checkpoint.checkpoint_id):
            heart.note(
                bytes_done=message.bytes_done,
                bytes_total=message.bytes_total,
                queue_s=message.queue_s,
                load_s=message.elapsed_s,
                tier=message.from_tier,
                moving_at_unix_s=message.moving_at_unix_s,
            )
        if heart.progress.tier == RESIDENT and earlier is not None and earlier.tier not in ("", RESIDENT):
            # The bytes came while a dead attempt waited for them: its figures are the true ones.
            heart.note(
                queue_s=earlier.queue_s,
                load_s=earlier.load_s,
                tier=earlier.tier,
                moving_at_unix_s=earlier.moving_at_unix_s,
            )
        return heart.progress

    async def _attach(self, plan: StartPlan) -> tuple[str, float]:
        began_s = time.monotonic()
        reply = await self.host.attach(
            instance_id=plan.instance_id,
            epoch=plan.epoch,
            model=plan.model,
            checkpoint_id=plan.checkpoint.checkpoint_id,
            gpu_indices=plan.gpu_indices,
            max_concurrency=plan.max_concurrency,
            context_length=plan.context_length,
        )
        # A repeat is answered at once with the first outcome, whose seconds are in the reply.
        return reply.endpoint, max(reply.total_s, time.monotonic() - began_s)

    async def _publish(self, plan: StartPlan, endpoint: str) -> None:
        digest, size_bytes = await self._identity(plan)

        async def write() -> None:
            async with self.database.transaction() as session:
                await publish_route(
                    session,
                    instance_id=plan.instance_id,
                    epoch=plan.epoch,
                    endpoint=endpoint,
                    manifest_digest=digest,
                    size_bytes=size_bytes,
                )

        try:
            await until_database_answers(write)
        except (StaleEpoch, ModelBeingDeleted):
            # Nobody will ever route to this engine: end it now rather than at the next reconciliation.
            with suppress(FirstlightError):
                await self.host.stop(
                    instance_id=plan.instance_id, epoch=plan.epoch, drain_timeout_s=0.0, reason="fenced off"
                )
            raise

    async def _identity(self, plan: StartPlan) -> tuple[str, int]:
        """Digest and size of the checkpoint; the store is asked only if no plan has known them yet."""
        checkpoint = plan.checkpoint
        if checkpoint.manifest_digest:
            return checkpoint.manifest_digest, checkpoint.size_bytes
        for row in (await self.store.inventory()).checkpoints:
            if row.checkpoint_id == checkpoint.checkpoint_id:
                return row.manifest_digest, row.size_bytes
        return "", checkpoint.size_bytes


def _phases(request: BringUpInput, load: Progress, attach_s: float) -> PhaseSeconds:
    measured = PhaseSeconds(
        queue_s=load.queue_s,
        download_s=request.download_s,
        load_s=load.load_s,
        attach_s=attach_s,
        tier="remote" if request.download_s > 0 else load.tier,
        bytes_moved=0 if load.tier == RESIDENT else load.bytes_total,
        moving_at_unix_s=load.moving_at_unix_s,
    )
    # Two machines' clocks: a start never takes less than what was measured on one of them.
    parts_s = measured.queue_s + measured.download_s + measured.load_s + measured.attach_s
    total_s = max(time.time() - request.plan.decided_at_unix_s, parts_s)
    return replace(measured, control_s=total_s - parts_s, total_s=total_s)
