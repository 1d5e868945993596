"""Starts on the real cluster: decisions in Postgres, hints over gRPC, the workflow in Temporal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from temporalio.client import Client
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from api.background import Background
from api.engine_client import EngineClient
from api.foresight import Foreseen, Foresight, foreseen
from api.host_directory import HostAddresses, HostDirectory
from api.routing.lane import Route
from api.starts import Starter
from firstlight.contracts.starting import is_fetched, start_cold_start
from firstlight.contracts.starts import AbandonInput, ColdStartInput, StartPlan
from firstlight.database.connection import Database
from firstlight.database.fleet_view import FleetView
from firstlight.database.moves_called_off import call_off_moves
from firstlight.database.records import PlannedStart
from firstlight.database.starts_repository import abandon_start, plan_start
from firstlight.domain.errors import EngineGone, FirstlightError, Overloaded
from firstlight.domain.scheduler import Migrate, Place
from firstlight.rpc import store_pb2
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.engine_loads import EngineLoads
from firstlight.rpc.hint_lines import HintLines

# A store that was told a moment ago has not forgotten.
TELL_AGAIN_S = 0.25
TOLD_AT_MOST = 4096
# A store answers within a millisecond or two; one that does not holds no engine up.
ENGINE_HINT_AFTER_S = 0.01
REHEARSED_WITH = 4
# A checkpoint that no store has.
NOBODYS = "rehearsal@0000"
# So long the API waits for an engine that it has bound ahead; after that the workflow's word counts.
BOUND_AHEAD_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class _Told:
    """What was hinted last about a model, and the call that tells its store."""

    target: Foreseen
    until_s: float
    store: asyncio.Task[None]


class ClusterStarter(Starter):
    def __init__(
        self,
        *,
        database: Database,
        temporal: Client,
        channels: Channels,
        engines: EngineClient,
        hosts: HostDirectory,
        hints: HintLines,
        background: Background,
        foresight: Foresight,
        max_plans: int,
        is_eager: bool = False,
        on_bound: Callable[[Route], None] = lambda route: None,
    ) -> None:
        """`is_eager`: a control worker runs on the same Temporal client, which saves a hop.

        `on_bound` hears of engines that are bound ahead of their workflow.
        """
        self._database = database
        self._temporal = temporal
        self._channels = channels
        self._engines = engines
        self._hosts = hosts
        self._hints = hints
        self._background = background
        self._max_plans = max_plans
        self._is_eager = is_eager
        self._on_bound = on_bound
        self._foresight = foresight
        # The last hint about each model, not repeated at once.
        self._told: dict[str, _Told] = {}

    async def plan(
        self,
        model: str,
        *,
        deadline_s: float | None,
        may_wait: bool,
        request_id: str,
        waited_s: float | None = None,
    ) -> PlannedStart:
        now_unix_s = time.time()
        self.foretell(model, request_id)
        place: Place | Migrate | None = None

        def chosen(decision: Place | Migrate, view: FleetView) -> None:
            nonlocal place
            place = decision
            self._hint(foreseen(decision, view.wanted, view.snapshot), model, request_id)

        planned = await plan_start(
            self._database,
            model=model,
            deadline_s=deadline_s,
            may_wait=may_wait,
            request_id=request_id,
            now_unix_s=now_unix_s,
            on_chosen=chosen,
            waited_s=waited_s,
            ask_engines=EngineLoads(self._channels).ask,
        )
        if place is not None and planned.plan is not None:
            self._foresight.placed(place, planned.plan.instance_id)
        return planned

    def foretell(self, model: str, request_id: str) -> None:
        """Tell the host that a start of `model` would go to now. Costs nothing but a prefetch where wrong."""
        if (target := self._foresight.guess(model, now_unix_s=time.time())) is not None:
            self._hint(target, model, request_id)

    async def rehearse(self) -> None:
        """Ask some hosts for nothing, in the words of a hint: what is done once per process is done then."""
        for host in self._hosts.some(REHEARSED_WITH):
            with suppress(FirstlightError):
                await StoreClient(self._channels, host.store_address).prepare(checkpoint_id="")
            await self._rehearse_hint(host.store_address)
            with suppress(FirstlightError):
                await HostClient(self._channels, host.host_address).list_engines(timeout_s=1.0)

    async def _rehearse_hint(self, store_address: str) -> None:
        # About a checkpoint that no store has: a line stays open after it.
        if await self._hints.until_open(store_address):
            with suppress(FirstlightError):
                await self._hints.prepare(store_address, store_pb2.PrepareRequest(checkpoint_id=NOBODYS))

    def _hint(self, target: Foreseen, model: str, request_id: str) -> None:
        """Before anything is written: bytes may move while Postgres reads, decides and commits."""
        now_s = time.monotonic()
        told = self._told.get(model)
        if told is not None and told.target == target and now_s < told.until_s:
            return
        if len(self._told) >= TOLD_AT_MOST:
            self._told.clear()
        store = self._background.start(self._hint_store(target, request_id), name="hint to the store")
        self._told[model] = _Told(target, now_s + TELL_AGAIN_S, store)
        self._background.start(self._hint_engine(target, request_id, store), name="hint to the engine")

    async def begin(self, planned: PlannedStart) -> None:
        assert planned.plan is not None
        if _may_be_bound_ahead(planned.plan):
            self._background.start(self._bind_ahead(planned.plan), name="bind an engine ahead")
            # Sent before the workflow's start takes the core.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        request = ColdStartInput(
            plan=planned.plan,
            max_plans=self._max_plans,
            candidates_markdown=planned.candidates_markdown,
        )
        try:
            await start_cold_start(self._temporal, request, eager=self._is_eager)
        except WorkflowAlreadyStartedError:
            # It began, and ended, on an earlier try whose answer was lost: its outcome is in Postgres.
            return
        except (RPCError, OSError, RuntimeError) as error:
            # RuntimeError is what the client raises when the connection itself cannot be made.
            raise Overloaded(f"Temporal does not answer: {error}", retry_after_s=5.0) from error

    async def _bind_ahead(self, plan: StartPlan) -> None:
        """What the workflow's activity will ask the host for, asked now; the activity joins it.

        The plan is committed and the epoch guards its GPUs, so this is the plan's own engine. Nobody is told
        of it but those who wait here. Best effort: what fails, the activity does anew.
        """
        if (told := self._told.get(plan.model)) is not None:
            # A store that knows nothing of the bytes yet refuses to pin them.
            await asyncio.wait({told.store}, timeout=BOUND_AHEAD_WITHIN_S)

        async def attach(host: HostAddresses) -> None:
            reply = await HostClient(self._channels, host.host_address).attach(
                instance_id=plan.instance_id,
                epoch=plan.epoch,
                model=plan.model,
                checkpoint_id=plan.checkpoint.checkpoint_id,
                gpu_indices=plan.gpu_indices,
                max_concurrency=plan.max_concurrency,
                context_length=plan.context_length,
                is_ahead=True,
                timeout_s=BOUND_AHEAD_WITHIN_S,
            )
            self._on_bound(
                Route(
                    instance_id=plan.instance_id,
                    model=plan.model,
                    host_id=plan.host_id,
                    endpoint=reply.endpoint,
                    epoch=plan.epoch,
                    max_concurrency=max(1, plan.max_concurrency),
                )
            )

        await self._tell(plan.host_id, attach)

    async def give_up(self, planned: PlannedStart, failure: str) -> None:
        assert planned.plan is not None
        request = AbandonInput(plan=planned.plan, failure_code="start_failed", failure=failure)
        self._background.start(self._abandon(request), name="abandon a start that could not begin")

    async def _abandon(self, request: AbandonInput) -> None:
        async with self._database.transaction() as session:
            await abandon_start(session, request)
            await call_off_moves(session, request.plan, failure=request.failure)
        plan = request.plan

        async def stop(host: HostAddresses) -> None:
            await HostClient(self._channels, host.host_address).stop(
                instance_id=plan.instance_id, epoch=plan.epoch, drain_timeout_s=0.0, reason=request.failure
            )

        if _may_be_bound_ahead(plan):
            await self._tell(plan.host_id, stop)

    async def _hint_store(self, target: Foreseen, request_id: str) -> None:
        async def prepare(host: HostAddresses) -> None:
            request = store_pb2.PrepareRequest(
                checkpoint_id=target.checkpoint_id,
                instance_id=request_id,
                decided_at_unix_s=time.time(),
                source=target.source,
                dtype=target.dtype,
                expected_digest=target.expected_digest,
                peer_endpoints=target.peer_endpoints,
            )
            await self._hints.prepare(host.store_address, request)

        await self._tell(target.host_id, prepare)

    async def _hint_engine(self, target: Foreseen, request_id: str, store: asyncio.Task[None]) -> None:
        """After the store's: bytes take longest, and an engine that gets ready would take its core."""
        await asyncio.wait({store}, timeout=ENGINE_HINT_AFTER_S)

        async def prepare(host: HostAddresses) -> None:
            reply = await HostClient(self._channels, host.host_address).prepare_engine(
                checkpoint_id=target.checkpoint_id, instance_id=request_id
            )
            await self._engines.meet(reply.endpoints)

        await self._tell(target.host_id, prepare)

    async def _tell(self, host_id: str, tell: Callable[[HostAddresses], Awaitable[None]]) -> None:
        """Tell a host; once more where it is now if it has moved since its address was read."""
        if (host := await self._hosts.of(host_id)) is None:
            return
        try:
            await tell(host)
        except EngineGone:
            self._hosts.forget(host)
            if (moved := await self._hosts.of(host_id)) is not None and moved != host:
                await tell(moved)


def _may_be_bound_ahead(plan: StartPlan) -> bool:
    """Its GPUs are its own already, and its bytes on the host: what comes from afar has no folder yet."""
    return not plan.awaits_gpus and not is_fetched(plan)
