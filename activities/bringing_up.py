"""bring_up: bytes to DRAM, an engine bound to them, the route published. The one step a client waits for.

A GPU that another instance gives up for this start is waited for while the bytes come. The engine is
attached while its bytes still come, and its route is published at once: requests wait inside
of the engine for the layers they have come to. The activity ends when all bytes are there; should they not
come, it takes the route back and ends the engine before it fails.

A dead attempt may have left any prefix of the steps done. Each is idempotent at its owner: the store joins
a load, the supervisor returns the engine it has bound for (instance, epoch), publishing twice is one row.
The epoch fences off an attempt whose plan was replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from activities.arriving import Arrived, Arriving
from activities.awaiting_gpus import until_gpus_are_ours
from activities.heartbeat import Heart, Progress
from activities.patience import until_database_answers
from activities.standing import Standing
from activities.telling import Teller
from firstlight.contracts.starts import BringUpInput, BringUpReceipt, PhaseSeconds, StartPlan
from firstlight.database.connection import Database
from firstlight.database.keys_repository import audit
from firstlight.database.starts_repository import publish_route, withdraw_route
from firstlight.domain.errors import CheckpointError, FirstlightError, ModelBeingDeleted, PoolFull, StaleEpoch
from firstlight.domain.fleet import Tier
from firstlight.rpc.clients import HostClient, StoreClient

log = logging.getLogger("start")

# An attach may wait for a load's turn, or for a download: the activity's own time-out bounds it.
ATTACH_AT_MOST_S = 6 * 3600.0
# A hint may go out so long before the decision, by clocks of two machines.
HINT_AHEAD_S = 0.5
# So long an engine's failure waits for the word of what made it fail.
CAUSE_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attached:
    endpoint: str
    began_s: float
    ended_s: float
    own_s: float  # what the supervisor and the engine say they took, this attempt or an earlier one
    stream_s: float  # of it, of bringing what is larger than the pool into the engine's memory
    was_ahead: bool  # the API had it bound, and sends requests there, before this activity came to it


@dataclass(frozen=True, slots=True)
class BringUp:
    store: StoreClient
    host: HostClient
    database: Database
    teller: Teller

    async def run(self, request: BringUpInput, heart: Heart, earlier: Progress | None) -> BringUpReceipt:
        """`earlier`: what an attempt that died had reached. Raises: FirstlightError."""
        standing = Standing(request, heart)
        with self.teller.telling(standing.now):
            return await self._carry_out(request, heart, earlier, standing)

    async def _carry_out(
        self, request: BringUpInput, heart: Heart, earlier: Progress | None, standing: Standing
    ) -> BringUpReceipt:
        """Raises: FirstlightError."""
        plan = request.plan
        # Best effort and not waited for: attach joins whatever it has prepared.
        hint = asyncio.create_task(self._prepare_engine(plan))
        bytes_ = self._bytes(request, heart)
        arriving = asyncio.create_task(self._arrive(request, bytes_, heart, earlier, standing))
        serving = asyncio.create_task(self._serve(request, bytes_, standing))
        try:
            attached = await _cause_first(serving, arriving)
            arrived = await arriving
        except FirstlightError as failure:
            await _end(serving)
            if isinstance(failure, CheckpointError):
                await self._record_damage(plan, failure)
            if serving.cancelled() or serving.exception() is None:
                # A route may have been published: it leads to an engine that will never be whole.
                await self._take_back(plan, failure)
            raise
        finally:
            hint.cancel()
            await _end(arriving, serving)
        return BringUpReceipt(endpoint=attached.endpoint, phases=_phases(request, arrived, attached))

    def _bytes(self, request: BringUpInput, heart: Heart) -> Arriving:
        return Arriving(
            self.store,
            request.plan.checkpoint,
            heart=heart,
            fetch=request.fetch,
            since_unix_s=request.plan.decided_at_unix_s - HINT_AHEAD_S,
        )

    async def _arrive(
        self,
        request: BringUpInput,
        bytes_: Arriving,
        heart: Heart,
        earlier: Progress | None,
        standing: Standing,
    ) -> Arrived:
        """Raises: FirstlightError."""
        try:
            arrived = await bytes_.run(earlier)
        except PoolFull:
            if not request.plan.awaits_gpus:
                raise
            arrived = await self._arrive_behind_others(request, heart, earlier, standing)
        standing.arrived(arrived)
        return arrived

    async def _arrive_behind_others(
        self, request: BringUpInput, heart: Heart, earlier: Progress | None, standing: Standing
    ) -> Arrived:
        """Those that give way hold memory too, until they are gone. Raises: FirstlightError."""
        began_s = time.monotonic()
        standing.waits_for_room()
        await until_gpus_are_ours(self.database, request.plan)
        standing.has_room()
        waited_s = time.monotonic() - began_s
        return replace(await self._bytes(request, heart).run(earlier), waited_s=waited_s)

    async def _prepare_engine(self, plan: StartPlan) -> None:
        with suppress(FirstlightError):
            await self.host.prepare_engine(
                checkpoint_id=plan.checkpoint.checkpoint_id, instance_id=plan.instance_id
            )

    async def _serve(self, request: BringUpInput, bytes_: Arriving, standing: Standing) -> _Attached:
        """Attach as soon as the store can answer for the bytes, and let requests in."""
        await bytes_.is_known.wait()
        await until_gpus_are_ours(self.database, request.plan)
        standing.attaches()
        attached = await self._attach(request.plan)
        standing.attached()
        await self._publish(request, attached.endpoint)
        return attached

    async def _attach(self, plan: StartPlan) -> _Attached:
        began_s = time.monotonic()
        reply = await self.host.attach(
            instance_id=plan.instance_id,
            epoch=plan.epoch,
            model=plan.model,
            checkpoint_id=plan.checkpoint.checkpoint_id,
            gpu_indices=plan.gpu_indices,
            max_concurrency=plan.max_concurrency,
            context_length=plan.context_length,
            timeout_s=ATTACH_AT_MOST_S,
        )
        # A repeat is answered at once with the first outcome, whose seconds are in the reply.
        ended_s = time.monotonic() - reply.age_s
        return _Attached(
            endpoint=reply.endpoint,
            began_s=min(began_s, ended_s - reply.total_s) if reply.was_ahead else began_s,
            ended_s=ended_s if reply.was_ahead else time.monotonic(),
            own_s=reply.total_s,
            stream_s=reply.stream_s,
            was_ahead=reply.was_ahead,
        )

    async def _publish(self, request: BringUpInput, endpoint: str) -> None:
        plan = request.plan
        digest, size_bytes = await self._identity(plan)
        # What is being fetched is not on SSD yet; its download says so when it is.
        tiers = (Tier.DRAM,) if request.fetch else (Tier.SSD, Tier.DRAM)

        async def write() -> None:
            async with self.database.transaction() as session:
                await publish_route(
                    session,
                    instance_id=plan.instance_id,
                    epoch=plan.epoch,
                    endpoint=endpoint,
                    manifest_digest=digest,
                    size_bytes=size_bytes,
                    tiers=tiers,
                )

        try:
            await until_database_answers(write)
        except (StaleEpoch, ModelBeingDeleted):
            # Nobody will ever route to this engine: end it now rather than at the next reconciliation.
            await self._stop(plan, "fenced off")
            raise

    async def _take_back(self, plan: StartPlan, failure: FirstlightError) -> None:
        """Nobody is sent to an engine whose bytes do not come, and it ends, so that a repeat gets another."""

        async def write() -> None:
            async with self.database.transaction() as session:
                await withdraw_route(session, instance_id=plan.instance_id, epoch=plan.epoch)

        await until_database_answers(write)
        await self._stop(plan, f"its bytes do not come: {failure.message}")

    async def _record_damage(self, plan: StartPlan, failure: CheckpointError) -> None:
        """For whoever looks after the host: a disk that does this once does it again."""
        log.error("host=%s checkpoint=%s: %s", plan.host_id, plan.checkpoint.checkpoint_id, failure.message)

        async def write() -> None:
            async with self.database.transaction() as session:
                await audit(
                    session,
                    actor=f"host/{plan.host_id}",
                    act="checkpoint quarantined",
                    subject=f"checkpoint/{plan.checkpoint.checkpoint_id}",
                    detail={
                        "code": failure.code,
                        "message": failure.message,
                        "instance_id": plan.instance_id,
                        "epoch": plan.epoch,
                    },
                )

        await until_database_answers(write)

    async def _stop(self, plan: StartPlan, reason: str) -> None:
        with suppress(FirstlightError):
            await self.host.stop(
                instance_id=plan.instance_id, epoch=plan.epoch, drain_timeout_s=0.0, reason=reason
            )

    async def _identity(self, plan: StartPlan) -> tuple[str, int]:
        """Digest and size of the checkpoint; the store is asked only if no plan has known them yet."""
        checkpoint = plan.checkpoint
        if checkpoint.manifest_digest:
            return checkpoint.manifest_digest, checkpoint.size_bytes
        for row in (await self.store.inventory()).checkpoints:
            if row.checkpoint_id == checkpoint.checkpoint_id:
                return row.manifest_digest, row.size_bytes
        return "", checkpoint.size_bytes


async def _cause_first(serving: asyncio.Task[_Attached], arriving: asyncio.Task[Arrived]) -> _Attached:
    """The attached engine; or why there is none. Where the bytes fail too, that is the reason to tell."""
    await asyncio.wait({serving, arriving}, return_when=asyncio.FIRST_COMPLETED)
    if not arriving.done() and serving.exception() is not None:
        await asyncio.wait({arriving}, timeout=CAUSE_WITHIN_S)
    if arriving.done():
        arriving.result()
    return await serving


async def _end(*tasks: asyncio.Task[Arrived] | asyncio.Task[_Attached]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _phases(request: BringUpInput, arrived: Arrived, attached: _Attached) -> PhaseSeconds:
    """Attaching counts as far as the bytes' way did not hide it: phases follow each other and add up."""
    beside_s = max(0.0, arrived.ended_s - attached.began_s) if arrived.bytes_moved else 0.0
    if arrived.is_streamed:
        beside_s = attached.stream_s
    attach_s = max(0.0, max(attached.own_s, attached.ended_s - attached.began_s) - beside_s)
    download_s = request.download_s + arrived.download_s
    # As far as its bytes did not take as long as those that gave way.
    free_s = arrived.waited_s
    if request.plan.awaits_gpus:
        free_s += max(0.0, attached.began_s - arrived.ended_s)
    measured = PhaseSeconds(
        queue_s=arrived.queue_s,
        download_s=download_s,
        load_s=attached.stream_s if arrived.is_streamed else arrived.load_s,
        attach_s=attach_s,
        free_s=free_s,
        tier="remote" if request.download_s > 0 else arrived.tier,
        bytes_moved=arrived.bytes_moved,
        moving_at_unix_s=arrived.moving_at_unix_s,
    )
    # Two machines' clocks: a start never takes less than what was measured on one of them.
    parts_s = measured.queue_s + measured.download_s + measured.load_s + measured.free_s + measured.attach_s
    total_s = max(_served_at_unix_s(arrived, attached) - request.plan.decided_at_unix_s, parts_s)
    return replace(measured, control_s=total_s - parts_s, total_s=total_s)


def _served_at_unix_s(arrived: Arrived, attached: _Attached) -> float:
    """When requests could be answered: now, as the route is published; before, where the API was ahead."""
    now_unix_s = time.time()
    if not attached.was_ahead:
        return now_unix_s
    bound_unix_s = now_unix_s - (time.monotonic() - attached.ended_s)
    there_unix_s = arrived.moving_at_unix_s + arrived.load_s if arrived.bytes_moved else 0.0
    return min(now_unix_s, max(bound_unix_s, there_unix_s))
