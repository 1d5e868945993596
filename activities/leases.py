"""watch_lease: polls the database's clock, away from every request's path, until a lease has run out.

A lease that ran out while Postgres itself was away proves nothing: its host could not renew it. So after
every silence of the database the host gets time to come first.
"""

from __future__ import annotations

import asyncio
import time

from firstlight.contracts.hosts import LeaseWatchInput, LeaseWatchReceipt
from firstlight.database.connection import Database
from firstlight.database.hosts_repository import lease_remaining_s
from firstlight.domain.errors import DatabaseUnavailable

LONGEST_PAUSE_S = 1.0
# A host agent tries again at least every two seconds; see launcher/host_agent.
GRACE_AFTER_SILENCE_S = 5.0


async def watch_lease(
    database: Database, request: LeaseWatchInput, *, grace_s: float = GRACE_AFTER_SILENCE_S
) -> LeaseWatchReceipt:
    deadline_s = time.monotonic() + request.at_most_s
    # This watcher may start together with a whole machine: the same grace applies.
    trusted_from_s = time.monotonic() + grace_s
    while time.monotonic() < deadline_s:
        pause_s = LONGEST_PAUSE_S
        try:
            async with database.session() as session:
                left_s = await lease_remaining_s(
                    session, host_id=request.host_id, registration=request.registration
                )
        except DatabaseUnavailable:
            trusted_from_s = time.monotonic() + grace_s
        else:
            if left_s is None:
                return LeaseWatchReceipt("superseded")
            if left_s <= 0 and time.monotonic() >= trusted_from_s:
                return LeaseWatchReceipt("expired")
            pause_s = min(max(left_s, 0.1), LONGEST_PAUSE_S)
        await asyncio.sleep(pause_s)
    return LeaseWatchReceipt("elapsed")
