"""What keep-alive policies know of each model: its settings, its history, and what its starts have taken."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.arrival_tables import ArrivalRow
from firstlight.database.arrivals_repository import history_of
from firstlight.database.tables import InstanceRow, ModelRow
from firstlight.domain.autoscaling.arrivals import ArrivalHistory
from firstlight.domain.autoscaling.keep_alive import ModelLife
from firstlight.domain.autoscaling.warmth import Layer, LayerCost
from firstlight.domain.errors import UnknownInstance
from firstlight.domain.lifecycle import InstanceState

# What a start is taken to last until one has been seen.
PRIOR_START_S = 10.0
STARTS_LOOKED_AT = 16
# A second of an idle instance on its GPUs is worth this much of a request's waiting, and of its weights in
# DRAM a tenth of that: there is several times more host memory than GPU memory, and it is wanted less.
GPU_PRICE = 0.01
DRAM_PRICE = 0.001
# A skeleton that stands saves an attach some 30 ms (ADR 0003). It takes megabytes where weights take
# gigabytes, and is built anew in every spare.
ARCHITECTURE_SAVES_S = 0.03
ARCHITECTURE_PRICE = 0.00001
# The process with the imports forks a spare in 20 ms, and on a GPU it takes a few tenths of a second more to
# have its context. Used or not, a context holds about a two-hundredth of its GPU's memory.
SPARE_SAVES_S = 0.3
SPARE_PRICE = 0.00005


@dataclass(frozen=True, slots=True)
class InstanceLife:
    model: str
    life: ModelLife
    # Whether the model has a ready instance that has served for longer.
    is_further: bool


async def read_life(session: AsyncSession, instance_id: str, *, epoch: int) -> InstanceLife:
    """Of one instance's model. Raises: UnknownInstance."""
    found = await session.execute(
        select(ModelRow, ArrivalRow)
        .join(InstanceRow, InstanceRow.model_id == ModelRow.model_id)
        .outerjoin(ArrivalRow, ArrivalRow.model_id == ModelRow.model_id)
        .where(InstanceRow.instance_id == instance_id)
        .execution_options(populate_existing=True)
    )
    if (row := found.one_or_none()) is None:
        raise UnknownInstance(f"there is no instance {instance_id!r}", instance_id=instance_id)
    model, arrivals = row
    older = await session.scalar(
        select(func.count()).where(
            InstanceRow.model_id == model.model_id,
            InstanceRow.state == InstanceState.READY,
            InstanceRow.epoch < epoch,
        )
    )
    life = model_life(
        history=ArrivalHistory() if arrivals is None else history_of(arrivals),
        fixed_keep_alive_s=model.keep_alive_s,
        starts=(await _starts(session, [model.name])).get(model.name, []),
    )
    return InstanceLife(model=model.name, life=life, is_further=bool(older))


async def read_lives(session: AsyncSession, *, now_unix_s: float) -> dict[str, ModelLife]:
    """Of every model that was ever asked for, by name."""
    rows = await session.execute(
        select(ModelRow, ArrivalRow)
        .join(ArrivalRow, ArrivalRow.model_id == ModelRow.model_id)
        .execution_options(populate_existing=True)
    )
    found = [(model, history_of(arrivals)) for model, arrivals in rows]
    starts = await _starts(session, [model.name for model, _ in found])
    all_rate_per_s = sum(history.rate_per_s(idle_s=history.idle_s(now_unix_s) or 0.0) for _, history in found)
    return {
        model.name: model_life(
            history=history,
            fixed_keep_alive_s=model.keep_alive_s,
            starts=starts.get(model.name, []),
            all_rate_per_s=all_rate_per_s,
        )
        for model, history in found
    }


async def live_models(session: AsyncSession) -> set[str]:
    """Models of which an instance starts, serves or drains."""
    return set(await session.scalars(select(InstanceRow.model).where(InstanceRow.is_live).distinct()))


def model_life(
    *,
    history: ArrivalHistory,
    fixed_keep_alive_s: float,
    starts: list[tuple[str, float]],
    all_rate_per_s: float | None = None,
) -> ModelLife:
    """`starts`: (tier, seconds) of the model's last ones.

    `all_rate_per_s`: how often any model is asked for; None: only layers that are this model's own count.
    """
    from_dram = [seconds for tier, seconds in starts if tier == "dram"]
    from_further = [seconds for tier, seconds in starts if tier != "dram"]
    costs = {
        Layer.SPARE: LayerCost(saves_s=SPARE_SAVES_S, price=SPARE_PRICE, shared_rate_per_s=all_rate_per_s),
        Layer.ARCHITECTURE: LayerCost(saves_s=ARCHITECTURE_SAVES_S, price=ARCHITECTURE_PRICE),
    }
    if from_dram:
        costs[Layer.GPU] = LayerCost(saves_s=median(from_dram), price=GPU_PRICE)
    if from_dram and from_further:
        saves_s = max(0.0, median(from_further) - median(from_dram))
        costs[Layer.DRAM] = LayerCost(saves_s=saves_s, price=DRAM_PRICE)
    return ModelLife(
        history=history,
        fixed_keep_alive_s=fixed_keep_alive_s,
        start_s=median(seconds for _, seconds in starts) if starts else PRIOR_START_S,
        costs=costs,
    )


# Each model's last starts by way of the index on (model, recorded_at), however many there were.
_STARTS = text("""
SELECT name, s.tier, s.total_s FROM unnest(CAST(:names AS text[])) AS name
CROSS JOIN LATERAL (
  SELECT tier, total_s FROM startup_observations o
  WHERE o.model = name AND total_s IS NOT NULL AND plans_tried = 1
  ORDER BY recorded_at DESC LIMIT :starts
) s
""")


async def _starts(session: AsyncSession, names: list[str]) -> dict[str, list[tuple[str, float]]]:
    found: dict[str, list[tuple[str, float]]] = {}
    for name, tier, total_s in await session.execute(_STARTS, {"names": names, "starts": STARTS_LOOKED_AT}):
        found.setdefault(name, []).append((tier, total_s))
    return found
