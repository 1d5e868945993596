"""Whether new starts would work: Postgres and Temporal, asked in the background and remembered.

A request for readiness never waits for a database that hangs.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from temporalio.client import Client
from temporalio.service import RPCError

from api.auth import KeyRing
from firstlight.database.connection import Database
from firstlight.database.keys_repository import read_stored_keys
from firstlight.domain.errors import FirstlightError

EVERY_S = 2.0
ANSWER_WITHIN_S = 2.0
# An answer this old says nothing of now.
STALE_AFTER_S = 10.0


@dataclass(slots=True)
class Peer:
    """What is known of one thing we need; times are monotonic seconds."""

    answered_s: float | None = None
    failure: str = "not asked yet"

    def is_well(self) -> bool:
        return self.answered_s is not None and time.monotonic() - self.answered_s < STALE_AFTER_S

    def say(self) -> str:
        return "ok" if self.is_well() and not self.failure else self.failure or "not answering"


class Health:
    """Also keeps the key ring in step with the table: a revoked key is refused within `EVERY_S`."""

    def __init__(self, *, database: Database, temporal: Client, keys: KeyRing) -> None:
        self._database = database
        self._temporal = temporal
        self._keys = keys
        self.postgres = Peer()
        self.temporal = Peer()

    @property
    def is_ready(self) -> bool:
        return self._is_well(self.postgres) and self._is_well(self.temporal)

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        await asyncio.gather(self._ask_postgres(), self._ask_temporal())

    async def _ask_postgres(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S), self._database.session() as session:
                keys = await read_stored_keys(session)
        except (FirstlightError, TimeoutError) as error:
            self.postgres.failure = f"not answering ({type(error).__name__})"
            return
        self._keys.replace_stored(keys)
        self.postgres.answered_s, self.postgres.failure = time.monotonic(), ""

    async def _ask_temporal(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                is_serving = await self._temporal.service_client.check_health()
        except (RPCError, OSError, RuntimeError, TimeoutError) as error:
            self.temporal.failure = f"not answering ({type(error).__name__})"
            return
        self.temporal.failure = "" if is_serving else "not serving"
        self.temporal.answered_s = time.monotonic()

    def _is_well(self, peer: Peer) -> bool:
        return peer.is_well() and not peer.failure
