"""A host's membership of the fleet: registered, its lease renewed, its workflow told; through any outage."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from temporalio.client import Client
from temporalio.service import RPCError

from firstlight.contracts.starting import announce_host
from firstlight.database.connection import Database
from firstlight.database.hosts_repository import register_host, renew_lease
from firstlight.database.records import HostRegistration
from firstlight.domain.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

# Below the grace that a lease watcher gives after an outage; see activities/leases.
RETRY_S = 1.0


@dataclass(slots=True)
class Membership:
    database: Database
    client: Client
    host: HostRegistration
    lease_s: float
    _registration: int | None = None
    _is_announced: bool = False
    # What is away at the moment: each outage is told once, and its end.
    _away: set[str] = field(default_factory=set)

    @property
    def registration(self) -> int | None:
        """Number of the registration that holds, None while there is none."""
        return self._registration

    def is_member(self) -> bool:
        return self._registration is not None

    async def keep(self) -> None:
        """Never returns; cancel it to leave (the lease then runs out by itself)."""
        while True:
            is_well = await self._hold_lease()
            if is_well and not self._is_announced:
                is_well = await self._announce()
            await asyncio.sleep(self.lease_s / 3 if is_well else min(RETRY_S, self.lease_s / 3))

    async def _hold_lease(self) -> bool:
        try:
            if self._registration is not None and not await self._renew(self._registration):
                log.warning("%s was superseded or taken for lost; registering again", self.host.host_id)
                self._registration = None
            if self._registration is None:
                self._registration = await self._register()
        except DatabaseUnavailable as failure:
            self._tell_away("Postgres", failure.message)
            return False
        self._tell_back("Postgres")
        return True

    async def _register(self) -> int:
        async with self.database.transaction() as session:
            registration = await register_host(session, self.host, lease_s=self.lease_s)
        self._is_announced = False
        log.info("%s joined the fleet, registration %d", self.host.host_id, registration)
        return registration

    async def _renew(self, registration: int) -> bool:
        async with self.database.transaction() as session:
            return await renew_lease(
                session, host_id=self.host.host_id, registration=registration, lease_s=self.lease_s
            )

    async def _announce(self) -> bool:
        assert self._registration is not None
        try:
            await announce_host(self.client, host_id=self.host.host_id, registration=self._registration)
        except RPCError as failure:
            self._tell_away("Temporal", failure.message)
            return False
        self._tell_back("Temporal")
        self._is_announced = True
        return True

    def _tell_away(self, what: str, reason: str) -> None:
        if what not in self._away:
            self._away.add(what)
            log.warning("%s is away (%s); trying again until it is back", what, reason)

    def _tell_back(self, what: str) -> None:
        if what in self._away:
            self._away.discard(what)
            log.info("%s is back", what)
