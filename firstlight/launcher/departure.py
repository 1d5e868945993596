"""A host's departure: told to stop, it takes nothing new and has what it runs moved off before it ends.

A note in its state directory says that it drains in order to stop: when it comes back, it takes work again,
however it ended. A host that an operator drained has no note, and stays drained.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client
from temporalio.service import RPCError

from firstlight.contracts.draining import DrainInput
from firstlight.contracts.hosts import FailHostInput
from firstlight.contracts.instances import StopSignal
from firstlight.contracts.migrations import MovingInstance
from firstlight.contracts.starting import call_off_drain, start_drain, stop_instance
from firstlight.database.connection import Database
from firstlight.database.host_draining import instances_of, set_draining
from firstlight.database.hosts_repository import fail_host
from firstlight.database.migrations_repository import moving_instances
from firstlight.database.records import InstanceRecord
from firstlight.domain.errors import Conflict, DatabaseUnavailable, UnknownHost
from firstlight.domain.lifecycle import HostState, InstanceState
from firstlight.rpc.engine_loads import EngineLoads

log = logging.getLogger(__name__)

REASON = "the host was told to stop"
LOOK_EVERY_S = 0.3
RETRY_S = 1.0
# An instance that is idle for so long and does not move has nowhere to go, and nobody misses it.
IDLE_LONG_ENOUGH_S = 5.0
TELL_WITHIN_S = 3.0


@dataclass(slots=True, kw_only=True)
class Departure:
    """`note` is the file that remembers a drain which was begun in order to stop."""

    host_id: str
    database: Database
    client: Client
    loads: EngineLoads
    note: Path

    async def drain(self, *, within_s: float) -> None:
        """Return once nothing runs here that a client waits for, at the latest after `within_s`."""
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(within_s):
                if await self._begin():
                    await self._until_empty()
                    log.info("%s is drained after %.1f s", self.host_id, time.monotonic() - began_s)
        except TimeoutError:
            log.warning("%s is not empty after %.0f s, and stops", self.host_id, within_s)

    async def leave(self, registration: int | None) -> None:
        """Tell the fleet that the host has gone, if it drained to go; else its lease will.

        Call it when the lease is renewed no more: the host would join again.
        """
        if registration is None or not self.note.exists():
            return
        try:
            async with asyncio.timeout(TELL_WITHIN_S):
                await call_off_drain(self.client, host_id=self.host_id)
                async with self.database.transaction() as session:
                    gone = FailHostInput(self.host_id, registration, reason=REASON)
                    failed = (await fail_host(session, gone)).failed_instances
                self.note.unlink(missing_ok=True)
                await self._tell(failed)
        except (TimeoutError, DatabaseUnavailable, RPCError) as failure:
            log.warning("the fleet learns from %s's lease that it has gone: %s", self.host_id, failure)

    async def come_back(self) -> None:
        """Take work again, if what kept it away was a drain to stop. Waits for Postgres and Temporal."""
        while self.note.exists():
            try:
                await call_off_drain(self.client, host_id=self.host_id)
                async with self.database.transaction() as session:
                    await set_draining(session, self.host_id, is_draining=False)
            except (DatabaseUnavailable, RPCError):
                await asyncio.sleep(RETRY_S)
                continue
            except (UnknownHost, Conflict) as obstacle:
                log.info("%s joins anew: %s", self.host_id, obstacle.message)
            self.note.unlink(missing_ok=True)

    async def _begin(self) -> bool:
        """Whether there is anything to wait for: the host is of the fleet, and is being emptied."""
        # Before the act: a note without a drain is harmless, a drain without a note would last.
        self.note.touch()
        while True:
            try:
                async with self.database.transaction() as session:
                    was = await set_draining(session, self.host_id, is_draining=True)
                if was is HostState.DRAINING:
                    # An operator's: not ours to end.
                    self.note.unlink(missing_ok=True)
                await start_drain(self.client, DrainInput(self.host_id, REASON))
                return True
            except (DatabaseUnavailable, RPCError) as failure:
                log.warning("%s cannot be drained yet: %s", self.host_id, failure)
                await asyncio.sleep(RETRY_S)
            except (UnknownHost, Conflict):
                self.note.unlink(missing_ok=True)
                return False

    async def _until_empty(self) -> None:
        idle_since_s = time.monotonic()
        while True:
            try:
                live, moving = await self._running()
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            if not live:
                return
            if moving or not await self._are_idle(live):
                idle_since_s = time.monotonic()
            elif time.monotonic() - idle_since_s > IDLE_LONG_ENOUGH_S:
                log.info("%d idle instances of %s end with it", len(live), self.host_id)
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _running(self) -> tuple[list[InstanceRecord], frozenset[str]]:
        async with self.database.session() as session:
            live = await instances_of(session, self.host_id)
            return live, await moving_instances(session, [one.instance_id for one in live])

    async def _are_idle(self, live: list[InstanceRecord]) -> bool:
        if any(one.state is not InstanceState.READY for one in live):
            return False
        loads = await self.loads.ask(
            [MovingInstance(one.instance_id, one.epoch, self.host_id, one.endpoint or "") for one in live]
        )
        # One that does not answer serves nobody either.
        return all(load is None or load.requests == 0 for load in loads.values())

    async def _tell(self, instance_ids: list[str]) -> None:
        """The workflows of what ran here to the end, which Postgres holds for failed now."""
        for instance_id in instance_ids:
            gone = StopSignal(f"{self.host_id} was told to stop", drain_timeout_s=0.0)
            await stop_instance(self.client, model="", instance_id=instance_id, request=gone)
