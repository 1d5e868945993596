"""Advisory locks, and the order of all locks.

Every transaction takes what it needs of these in this order: the advisory locks of decisions (model, then
fleet), hosts, instances (several at once only by `lock_instances`), models, checkpoints, the advisory lock
of a host's placements, placements. Housekeeping comes last and waits for nothing: it skips what is locked.
An update of an instance shuts out those who only refer to the row too (its triggers make every update one of
its key), so that even a record of a start is in the order: host, instance, model.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('firstlight-model ' || :model, 0))"
_FLEET = "hashtextextended('firstlight-fleet', 0)"
_MODEL = text(_LOCK)
_PLACEMENTS = text("SELECT pg_advisory_xact_lock(hashtextextended('firstlight-placements ' || :host_id, 0))")
_FLEET_ALONE = text(f"SELECT pg_advisory_xact_lock({_FLEET})")
_SHARED = text(f"{_LOCK}, pg_advisory_xact_lock_shared({_FLEET})")
_ALONE = text(f"{_LOCK}, pg_advisory_xact_lock({_FLEET})")


async def lock_model(session: AsyncSession, model: str) -> None:
    """Until the transaction ends, no other decision is made about this model."""
    await session.execute(_MODEL, {"model": model})


async def lock_decision(session: AsyncSession, model: str, *, is_last_attempt: bool) -> None:
    """As `lock_model`; the last attempt also shuts out all other decisions: it can lose no GPU to one.

    A statement of its own, before the snapshot is read: one taken together with the lock would show the
    fleet as it was before the wait.
    """
    await session.execute(_ALONE if is_last_attempt else _SHARED, {"model": model})


async def lock_placements(session: AsyncSession, host_id: str) -> None:
    """Until the transaction ends, nobody else writes where checkpoints lie on this host.

    Its rows are met in another order by every statement that writes several of them.
    """
    await session.execute(_PLACEMENTS, {"host_id": host_id})


async def lock_fleet(session: AsyncSession) -> None:
    """Until the transaction ends, no decision is made at all: GPUs may come and go."""
    await session.execute(_FLEET_ALONE)
