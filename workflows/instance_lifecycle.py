"""InstanceLifecycle: looks after one running instance until it is idle, asked to stop, or gone.

watching ── idle ──▶ draining ──▶ stopped        (scale to zero, unless the model's minimum needs it)
    ├───── stop ───▶ draining ──▶ stopped        (delete, scale-down, host drain)
    └── exited, host lost ──────▶ failed
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace

from temporalio import workflow
from temporalio.exceptions import ActivityError

from firstlight.contracts.failures import error_of, never_taken_up
from firstlight.contracts.instances import (
    BeginDrainInput,
    FinishInput,
    InstanceInput,
    KeepAliveSignal,
    StopInstanceInput,
    StopSignal,
    WatchInput,
    WatchReceipt,
)
from firstlight.contracts.naming import INSTANCE_LIFECYCLE, KEEP_ALIVE, STOP
from firstlight.contracts.starts import Nothing
from firstlight.contracts.warmth import KeepAliveInput
from firstlight.domain import errors
from workflows import control_calls, host_calls, warmth_calls
from workflows.story import Story

WATCHES_PER_RUN = 200
# An idle but needed instance is looked at again after so long, in case its model's minimum has changed.
NEEDED_RECHECK_S = 30.0
# Histories without it were made before keep-alive was a policy's to decide.
ASKS_POLICY = "keep-alive-policy"
# An idle time is measured, a keep-alive is decided: they are the same if they differ by less.
SAME_S = 0.1


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the instance ends, and what is still to be done about its engine."""

    outcome: str  # stopped | failed
    reason: str
    failure_code: str = ""
    drain_timeout_s: float = 30.0
    has_route: bool = True
    host_answers: bool = True


@workflow.defn(name=INSTANCE_LIFECYCLE)
class InstanceLifecycle:
    @workflow.init
    def __init__(self, request: InstanceInput) -> None:
        self._request = request
        self._story = Story()
        self._stop: StopSignal | None = None
        if request.stop_reason:
            self._stop = StopSignal(request.stop_reason, request.stop_drain_timeout_s)

    @workflow.signal(name=STOP)
    def stop(self, request: StopSignal) -> None:
        """The first reason stays; a repeat changes nothing."""
        self._stop = self._stop or request

    @workflow.signal(name=KEEP_ALIVE)
    def keep_alive(self, request: KeepAliveSignal) -> None:
        """The model's keep-alive time was changed: the watch begins anew with it."""
        self._request = replace(self._request, keep_alive_s=request.keep_alive_s)

    @workflow.run
    async def run(self, request: InstanceInput) -> Nothing:
        self._story.tell(f"ready at {request.endpoint}; ends after {request.keep_alive_s:g} s idle")
        try:
            ending = await self._until_end()
        except asyncio.CancelledError:
            await asyncio.shield(self._close(Ending("stopped", "workflow cancelled")))
            raise
        if ending is None:
            workflow.continue_as_new(self._renewed())
        await asyncio.shield(self._close(ending))
        return Nothing()

    async def _until_end(self) -> Ending | None:
        """None: the history has grown enough; go on in a new run."""
        needed = False
        await self._ask_policy()
        for _ in range(WATCHES_PER_RUN):
            try:
                receipt = await self._watch(ignore_idle=needed)
                if self._stop is not None:
                    return Ending("stopped", self._stop.reason, drain_timeout_s=self._stop.drain_timeout_s)
                needed = receipt is not None and receipt.ended_by == "idle"
                if receipt is not None and await self._is_kept(receipt):
                    needed = False
                    continue
                if receipt is not None and (ending := await self._after(receipt)) is not None:
                    return ending
            except ActivityError as failure:
                return _lost(failure)
            if workflow.info().is_continue_as_new_suggested():
                break
        return None

    async def _ask_policy(self, *, idle_s: float = 0.0) -> None:
        """Take the keep-alive time over that the policy gives this instance now; without an answer, go on."""
        if not workflow.patched(ASKS_POLICY):
            return
        asked = self._request
        try:
            receipt = await warmth_calls.decide_keep_alive(
                KeepAliveInput(asked.instance_id, asked.epoch, idle_s)
            )
        except ActivityError as failure:
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError from failure
            self._story.tell(f"keep-alive stays as it was: {error_of(failure).message}")
            return
        # An operator's word that came meanwhile is newer than what the policy looked at.
        if self._request == asked and abs(receipt.keep_alive_s - asked.keep_alive_s) > SAME_S:
            self._request = replace(asked, keep_alive_s=receipt.keep_alive_s)
            self._story.tell(f"ends after {receipt.keep_alive_s:g} s idle ({receipt.basis})")

    async def _is_kept(self, receipt: WatchReceipt) -> bool:
        """Whether an idle instance is to be kept for longer than it was watched for."""
        if receipt.ended_by != "idle":
            return False
        await self._ask_policy(idle_s=receipt.idle_s)
        return self._request.keep_alive_s > receipt.idle_s + SAME_S

    async def _after(self, receipt: WatchReceipt) -> Ending | None:
        """None: the instance goes on. An idle one that must stay goes on too. Raises: ActivityError."""
        if receipt.ended_by == "exited":
            return Ending("failed", "the engine process ended", failure_code=errors.EngineGone.code)
        if receipt.ended_by != "idle":
            return None
        reason = f"idle for {receipt.idle_s:.0f} s"
        if await self._begin_drain(reason, respect_minimum=True) == "ready":
            return None
        return Ending("stopped", reason, has_route=False)

    async def _watch(self, *, ignore_idle: bool) -> WatchReceipt | None:
        """What ended the watch; None when a signal did. Raises: ActivityError."""
        request = self._request
        watch = host_calls.start_watch(
            request.host_id,
            WatchInput(
                instance_id=request.instance_id,
                epoch=request.epoch,
                endpoint=request.endpoint,
                keep_alive_s=request.keep_alive_s,
                at_most_s=NEEDED_RECHECK_S if ignore_idle else 3600.0,
                ignore_idle=ignore_idle,
            ),
        )
        try:
            await workflow.wait_condition(
                lambda: watch.done() or self._stop is not None or self._request != request
            )
        except asyncio.CancelledError:
            watch.cancel()
            raise
        if watch.done():
            return await watch
        watch.cancel()
        with suppress(ActivityError):
            await watch
        return None

    async def _begin_drain(self, reason: str, *, respect_minimum: bool = False) -> str:
        """The state the instance is in now: `ready` means that it is needed."""
        request = self._request
        receipt = await control_calls.begin_drain(
            BeginDrainInput(request.instance_id, request.epoch, reason, respect_minimum=respect_minimum)
        )
        if receipt.draining:
            self._story.enter("draining")
            return "draining"
        return receipt.state

    async def _close(self, ending: Ending) -> None:
        request = self._request
        self._story.tell(f"{ending.outcome}: {ending.reason}")
        if ending.outcome == "stopped" and ending.has_route:
            with suppress(ActivityError):
                await self._begin_drain(ending.reason)
        if ending.host_answers:
            await self._stop_engine(ending)
        with suppress(ActivityError):
            await control_calls.finish_instance(
                FinishInput(
                    request.instance_id,
                    request.epoch,
                    ending.outcome,
                    ending.reason,
                    failure_code=ending.failure_code,
                )
            )
        self._story.end(ending.outcome)

    async def _stop_engine(self, ending: Ending) -> None:
        request = self._request
        drain_timeout_s = ending.drain_timeout_s if ending.outcome == "stopped" else 0.0
        stop = StopInstanceInput(request.instance_id, request.epoch, drain_timeout_s, ending.reason)
        try:
            await host_calls.stop_instance(request.host_id, stop)
        except ActivityError as failure:
            # The row is closed below, so the reconciler knows the engine for an orphan and ends it.
            self._story.tell(f"engine not stopped: {error_of(failure).message}")

    def _renewed(self) -> InstanceInput:
        if self._stop is None:
            return self._request
        # Asked to stop in the very moment of renewal: the new run stops at once.
        stop = self._stop
        return replace(self._request, stop_reason=stop.reason, stop_drain_timeout_s=stop.drain_timeout_s)


def _lost(failure: ActivityError) -> Ending:
    error = error_of(failure)
    return Ending(
        "failed",
        error.message,
        failure_code=error.code,
        host_answers=not never_taken_up(failure),
    )
