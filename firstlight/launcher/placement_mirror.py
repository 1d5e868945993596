"""What a store holds, kept true in Postgres within a second: evictions are its own and nobody asks for them.

An estimate is as good as the placements it reads. The reconciler would mend them too, but only every half
minute, and until then a start would be predicted from DRAM that has long been given to another model. What
the store's probe has measured goes the same way.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from activities.host import stored_rows
from firstlight.contracts.hosts import HostReport, StoredRow
from firstlight.database.connection import Database
from firstlight.database.host_mending import mend_placements
from firstlight.database.hosts_repository import set_peer_endpoint, set_probe
from firstlight.domain.errors import FirstlightError
from firstlight.rpc.clients import StoreClient

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0


@dataclass(slots=True)
class PlacementMirror:
    """`is_member` says whether the host has joined the fleet: before that it has no row to hang these on."""

    host_id: str
    store: StoreClient
    database: Database
    is_member: Callable[[], bool]
    _written: list[StoredRow] | None = None
    _peer_endpoint: str = ""
    _probed: tuple[float, float] = (0.0, 0.0)

    async def keep(self) -> None:
        """Never returns. Costs one local call a second, and SQL only when something has changed."""
        while True:
            if self.is_member():
                try:
                    await self._look()
                except FirstlightError as failure:
                    # The store restarts or Postgres is away, and both say so themselves; written anew after.
                    self._written = None
                    log.debug("placements of %s not mirrored: %s", self.host_id, failure.message)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        taken_at_unix_s = time.time()
        inventory = await self.store.inventory()
        stored = stored_rows(inventory)
        probed = (inventory.ssd_read_bytes_per_s, inventory.dram_to_gpu_bytes_per_s)
        if (stored, inventory.peer_endpoint, probed) == (self._written, self._peer_endpoint, self._probed):
            return
        async with self.database.transaction() as session:
            # A store that came back may be reached elsewhere by other stores.
            await set_peer_endpoint(session, host_id=self.host_id, peer_endpoint=inventory.peer_endpoint)
            if probed != self._probed:
                await set_probe(
                    session,
                    host_id=self.host_id,
                    ssd_read_bytes_per_s=probed[0],
                    dram_to_gpu_bytes_per_s=probed[1],
                )
            await mend_placements(
                session,
                HostReport(host_id=self.host_id, stored=stored, taken_at_unix_s=taken_at_unix_s),
            )
        self._written = stored
        self._peer_endpoint = inventory.peer_endpoint
        self._probed = probed
