"""What estimates of migrations learn from: predicted beside actual for every move, refitted at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.learned_tables import MoveModelRow, MoveObservationRow
from firstlight.database.tables import HostRow, InstanceRow, MigrationRow
from firstlight.domain.estimator import move_key
from firstlight.domain.migration import (
    OBSERVATIONS_AT_MOST,
    PRIOR_MOVE,
    MoveModel,
    MoveObservation,
    fit_move,
)


async def learn_move(session: AsyncSession, row: MigrationRow) -> None:
    """Keep what was foretold of a migration beside what it took, and refit its model and host class.

    Only one that ended well and moved something that was computed teaches. Once per migration.
    """
    if row.state != "completed" or not row.observations:
        return
    found = await session.execute(
        select(InstanceRow.model, HostRow.host_class)
        .join(HostRow, HostRow.host_id == InstanceRow.host_id)
        .where(InstanceRow.instance_id == row.destination_instance_id)
    )
    model, host_class = found.one()
    tokens = int(sum(count for count, _ in row.observations))
    before = await _model(session, model, host_class)
    # It must be in the database for the key that refers to it.
    await session.flush()
    await session.execute(
        insert(MoveObservationRow)
        .values(
            migration_id=row.migration_id,
            model=model,
            host_class=host_class,
            transfer=row.transfer,
            tokens=tokens,
            seconds=row.move_s,
            predicted_s=before.seconds(tokens),
        )
        .on_conflict_do_nothing()
    )
    await _refit(session, model=model, host_class=host_class, transfer=row.transfer)


async def forget_moves(session: AsyncSession, models: Iterable[str]) -> None:
    """Another model may be deployed under the name, and says nothing of what this one's moves took."""
    names = list(models)
    await session.execute(delete(MoveObservationRow).where(MoveObservationRow.model.in_(names)))
    await session.execute(delete(MoveModelRow).where(MoveModelRow.model.in_(names)))


# Any: rows of `move_models` as JSON, as fleet_view reads them.
def moves_from_rows(rows: Iterable[Mapping[str, Any]]) -> dict[str, MoveModel]:
    """Learned models by `estimator.move_key`."""
    return {
        move_key(row["model"], row["host_class"]): MoveModel(
            row["seconds_per_token"], row["overhead_s"], row["observations"]
        )
        for row in rows
    }


async def _model(session: AsyncSession, model: str, host_class: str) -> MoveModel:
    row = await session.get(MoveModelRow, (model, host_class), populate_existing=True)
    if row is None:
        return PRIOR_MOVE
    return MoveModel(row.seconds_per_token, row.overhead_s, row.observations)


async def _refit(session: AsyncSession, *, model: str, host_class: str, transfer: str) -> None:
    """From moves that sent what this one sent: sending a cache costs otherwise than computing it."""
    seen = MoveObservationRow
    rows = await session.execute(
        select(seen.tokens, seen.seconds)
        .where(seen.model == model, seen.host_class == host_class, seen.transfer == transfer)
        .order_by(seen.recorded_at.desc())
        .limit(OBSERVATIONS_AT_MOST)
    )
    fitted = fit_move([MoveObservation(tokens, seconds) for tokens, seconds in rows])
    values = {
        "seconds_per_token": fitted.seconds_per_token,
        "overhead_s": fitted.overhead_s,
        "observations": fitted.observations,
    }
    await session.execute(
        insert(MoveModelRow)
        .values(model=model, host_class=host_class, **values)
        .on_conflict_do_update(index_elements=["model", "host_class"], set_=values)
    )
