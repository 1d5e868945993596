"""Keeps the picture of the fleet that starts are foreseen from: read in the background, for no request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from api.foresight import Foresight
from api.host_directory import HostDirectory
from firstlight.database.connection import Database
from firstlight.database.fleet_view import read_picture
from firstlight.domain.errors import FirstlightError
from firstlight.rpc.channels import Channels
from firstlight.rpc.hint_lines import HintLines

logger = logging.getLogger(__name__)

# Changes come in bunches (a start writes several rows), and the start itself must not pay for the look.
SETTLE_S = 0.2
# A busy fleet changes without end.
SOONEST_S = 1.0
# For what no change tells of: a lease that ran out.
LATEST_S = 15.0
# Beyond so many hosts a connection is made when it is needed.
CONNECTED_AT_MOST = 256


class FleetWatch:
    """Woken by notifications. `has_looked` is set once there is a picture."""

    def __init__(
        self,
        *,
        database: Database,
        foresight: Foresight,
        hosts: HostDirectory,
        channels: Channels,
        hints: HintLines,
    ) -> None:
        self._database = database
        self._foresight = foresight
        self._hosts = hosts
        self._channels = channels
        self._hints = hints
        self._changed = asyncio.Event()
        self.has_looked = asyncio.Event()

    def changed(self) -> None:
        """Something of the fleet, a model or an instance is no longer what it was."""
        self._changed.set()

    async def run(self) -> None:
        """Never returns; cancel it to stop."""
        while True:
            self._changed.clear()
            try:
                await self.look()
            except FirstlightError as error:
                logger.debug("the fleet could not be read: %s", error.message)
            await asyncio.sleep(SOONEST_S)
            try:
                async with asyncio.timeout(LATEST_S):
                    await self._changed.wait()
                    await asyncio.sleep(SETTLE_S)
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Raises: DatabaseUnavailable."""
        async with self._database.session() as session:
            picture = await read_picture(session, now_unix_s=time.time())
        self._foresight.see(picture)
        self._hosts.learn(picture.addresses)
        self._connect(picture.addresses)
        await self._guess_ahead()
        self.has_looked.set()

    async def _guess_ahead(self) -> None:
        for model in self._foresight.likely():
            self._foresight.guess_ahead(model, now_unix_s=time.time())
            # A guess of many hosts takes milliseconds, and others use this loop.
            await asyncio.sleep(0)

    def _connect(self, addresses: Mapping[str, tuple[str, str]]) -> None:
        """A hint over a connection that stands takes a tenth of one that must be made first."""
        nearest = list(addresses.values())[:CONNECTED_AT_MOST]
        for host_address, _ in nearest:
            self._channels.connect(host_address)
        self._hints.keep(store_address for _, store_address in nearest)
