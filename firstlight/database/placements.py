"""Where checkpoints lie, and the digest that every copy of one must have."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.tables import CheckpointRow, PlacementRow
from firstlight.domain.errors import CheckpointMismatch, UnknownCheckpoint
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import PlacementState


async def record_checkpoint(
    session: AsyncSession, *, checkpoint_id: str, manifest_digest: str, size_bytes: int
) -> None:
    """Keep the digest and size of the first conversion anywhere; hold later ones to it.

    An empty digest says nothing and changes nothing. Raises: UnknownCheckpoint, CheckpointMismatch.
    """
    row = await session.get(CheckpointRow, checkpoint_id, populate_existing=True)
    if row is None:
        raise UnknownCheckpoint(f"no model has the checkpoint {checkpoint_id!r}", checkpoint_id=checkpoint_id)
    if not manifest_digest or row.manifest_digest == manifest_digest:
        return
    # Only the first conversion comes here, so only it pays for the lock. Its key stays, so that placements
    # may refer to it meanwhile: whoever writes them holds a lock that our caller wants next.
    await session.refresh(row, with_for_update={"key_share": True})
    if row.manifest_digest is None:
        row.manifest_digest, row.size_bytes = manifest_digest, size_bytes
    elif row.manifest_digest != manifest_digest:
        raise CheckpointMismatch(
            f"the bytes of {checkpoint_id} have digest {manifest_digest[:16]}…, its first conversion had "
            f"{row.manifest_digest[:16]}…: the source has changed under one revision",
            checkpoint_id=checkpoint_id,
        )


async def unwritten_tiers(
    session: AsyncSession, *, host_id: str, checkpoint_id: str, tiers: Sequence[Tier], size_bytes: int
) -> list[Tier]:
    """Those of `tiers` in which the host does not hold the checkpoint, as far as is written. No lock."""
    written = await session.scalars(
        select(PlacementRow.tier).where(
            PlacementRow.host_id == host_id,
            PlacementRow.checkpoint_id == checkpoint_id,
            PlacementRow.state == PlacementState.READY,
            PlacementRow.size_bytes == size_bytes,
        )
    )
    held = set(written)
    return [tier for tier in tiers if tier not in held]


async def write_placement(
    session: AsyncSession,
    *,
    host_id: str,
    checkpoint_id: str,
    tier: Tier,
    size_bytes: int,
    state: PlacementState = PlacementState.READY,
) -> None:
    """The host holds the checkpoint in `tier`. A copy that was quarantined has been replaced by a new one."""
    key = (
        PlacementRow.host_id == host_id,
        PlacementRow.checkpoint_id == checkpoint_id,
        PlacementRow.tier == tier,
    )
    if state is not PlacementState.QUARANTINED:
        await session.execute(
            delete(PlacementRow).where(*key, PlacementRow.state == PlacementState.QUARANTINED)
        )
    values = {
        "host_id": host_id,
        "checkpoint_id": checkpoint_id,
        "tier": tier,
        "state": state,
        "size_bytes": size_bytes,
        "updated_at": func.now(),
    }
    await session.execute(
        insert(PlacementRow)
        .values(values)
        .on_conflict_do_update(
            index_elements=["checkpoint_id", "host_id", "tier"],
            set_={name: values[name] for name in ("state", "size_bytes", "updated_at")},
        )
    )


async def remove_placement(session: AsyncSession, *, host_id: str, checkpoint_id: str, tier: Tier) -> None:
    await session.execute(
        delete(PlacementRow).where(
            PlacementRow.host_id == host_id,
            PlacementRow.checkpoint_id == checkpoint_id,
            PlacementRow.tier == tier,
        )
    )
