"""What a host's engines have to do, kept true in Postgres within seconds: it decides who may give way.

A decision that would touch an instance asks its engine once more, so these figures may be a little old;
without them nobody would know whom to ask.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.database.connection import Database
from firstlight.database.engine_loads_repository import write_loads
from firstlight.domain.errors import FirstlightError
from firstlight.rpc.clients import HostClient
from firstlight.rpc.engine_loads import EngineLoads

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
# Unchanged figures are written again so often: readers take older ones for those of a silent host. See
# LOAD_COUNTS_FOR_S in firstlight.database.fleet_view.
WRITE_EVERY_S = 5.0
# Tokens grow with every step; a change by less than this part of them decides nothing.
TOLD_CHANGE = 0.25


@dataclass(slots=True)
class LoadMirror:
    """`is_member` says whether the host has joined the fleet."""

    host: HostClient
    host_id: str
    loads: EngineLoads
    database: Database
    is_member: Callable[[], bool]
    _written: Mapping[str, EngineLoad] = field(default_factory=dict)
    _written_s: float = 0.0

    async def keep(self) -> None:
        """Never returns. Costs a local call an engine and second, and SQL only when something has changed."""
        while True:
            if self.is_member():
                try:
                    await self._look()
                except FirstlightError as failure:
                    # The supervisor restarts or Postgres is away, and both say so themselves.
                    self._written = {}
                    log.debug("loads of %s not mirrored: %s", self.host_id, failure.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        engines = (await self.host.list_engines()).engines
        found = await self.loads.ask(
            [
                MovingInstance(one.instance_id, one.epoch, self.host_id, one.endpoint)
                for one in engines
                if one.instance_id and one.state == "ready"
            ]
        )
        known = {load.instance_id: load for load in found.values() if load is not None}
        now_s = time.monotonic()
        if now_s - self._written_s < WRITE_EVERY_S and is_old_news(known, self._written):
            return
        if known:
            async with self.database.transaction() as session:
                await write_loads(session, list(known.values()))
        self._written, self._written_s = known, now_s


def is_old_news(now: Mapping[str, EngineLoad], before: Mapping[str, EngineLoad]) -> bool:
    """Whether the same engines do about the same; how long an idle one is idle tells itself."""
    return now.keys() == before.keys() and all(_is_like(now[one], before[one]) for one in now)


def _is_like(now: EngineLoad, before: EngineLoad) -> bool:
    is_alike = now.requests == before.requests and (now.idle_s is None) == (before.idle_s is None)
    # One that was busy in between is idle for less long.
    is_alike = is_alike and (now.idle_s or 0.0) >= (before.idle_s or 0.0)
    return is_alike and abs(now.tokens - before.tokens) <= TOLD_CHANGE * max(now.tokens, before.tokens)
