"""Models that must never be cold: as many instances as their `min_instances` are kept, request or not.

Sleeps on changes; the period only covers what no change tells of (a host that has room again).
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from api.catalog import Catalog
from api.routing.route_table import RouteTable
from api.starts import StartDirector
from firstlight.database.records import ModelRecord
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 15.0
# A model whose starts fail at once must not keep the fleet busy with failing.
SOONEST_S = 1.0


class MinimumKeeper:
    """Several API replicas may each run one: every decision is made under the model's lock."""

    def __init__(self, *, catalog: Catalog, table: RouteTable, director: StartDirector) -> None:
        self._catalog = catalog
        self._table = table
        self._director = director
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """A model or an instance is no longer what it was."""
        self._changed.set()

    async def run(self) -> None:
        """Never returns; cancel it to stop."""
        while True:
            self._changed.clear()
            for record in self._catalog.records:
                await self._keep(record)
            await asyncio.sleep(SOONEST_S)
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _keep(self, record: ModelRecord) -> None:
        lane = self._table.lane(record.name) if record.min_instances else None
        # One after the other: the end of a start is a change, and wakes this again.
        if lane is None or lane.starting or len(lane.routes) >= record.min_instances:
            return
        try:
            planned = await self._director.plan(record.name, request_id=f"minimum-{secrets.token_hex(4)}")
        except FirstlightError as error:
            logger.warning("%s is below its minimum of instances: %s", record.name, error.message)
            return
        logger.info(
            "%s has %d of at least %d instances: %s",
            record.name,
            len(lane.routes),
            record.min_instances,
            type(planned.decision).__name__.lower(),
        )
