"""Arrival histories: written by the API as spells of activity, read by whoever decides what stays warm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.arrival_tables import ArrivalRow
from firstlight.database.model_tables import ModelRow
from firstlight.domain.autoscaling.arrivals import ArrivalHistory


@dataclass(frozen=True, slots=True)
class Spell:
    """A model was asked for, without a break, between these moments (seconds since the Unix epoch)."""

    from_unix_s: float
    until_unix_s: float


# The lock on a model waits for whoever deletes it, and then finds it gone: no row is hung on nothing.
_OPEN = text("""
INSERT INTO arrivals (model_id)
SELECT model_id FROM models WHERE name = ANY(:names) ORDER BY model_id FOR KEY SHARE
ON CONFLICT DO NOTHING
""")


async def record_activity(session: AsyncSession, spells: Mapping[str, Sequence[Spell]]) -> None:
    """Take spells of activity in, oldest first for each model. Models that are not there are passed over.

    With several API replicas the gaps are between what any of them saw; a spell that is told late, after
    another's, makes no gap of its own.
    """
    await session.execute(_OPEN, {"names": sorted(spells)})
    rows = await session.execute(
        select(ModelRow.name, ArrivalRow)
        .join(ArrivalRow, ArrivalRow.model_id == ModelRow.model_id)
        .where(ModelRow.name.in_(spells))
        .order_by(ArrivalRow.model_id)
        .with_for_update(of=ArrivalRow)
        .execution_options(populate_existing=True)
    )
    for name, row in rows.all():
        after = reduce(_with_spell, spells[name], history_of(row))
        await session.execute(
            update(ArrivalRow)
            .where(ArrivalRow.model_id == row.model_id)
            .values(
                counts=list(after.counts),
                beyond=after.beyond,
                long_gaps_s=list(after.long_gaps_s),
                active_until_unix_s=after.active_until_s,
                expected_idle_s=list(after.expected_idle_by_bin_s()),
                updated_at=func.now(),
            )
        )


async def read_histories(session: AsyncSession) -> dict[str, ArrivalHistory]:
    """Of all models that were ever asked for, by name."""
    rows = await session.execute(
        select(ModelRow.name, ArrivalRow)
        .join(ArrivalRow, ArrivalRow.model_id == ModelRow.model_id)
        .execution_options(populate_existing=True)
    )
    return {name: history_of(row) for name, row in rows}


def history_of(row: ArrivalRow) -> ArrivalHistory:
    return ArrivalHistory(
        counts=tuple(row.counts),
        beyond=row.beyond,
        long_gaps_s=tuple(row.long_gaps_s),
        active_until_s=row.active_until_unix_s,
    )


def _with_spell(history: ArrivalHistory, spell: Spell) -> ArrivalHistory:
    return history.with_activity(from_s=spell.from_unix_s, until_s=spell.until_unix_s)
