"""How far estimates were off: predicted beside actual of the latest starts and moves."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

# A start that was planned anew spent its time on another host's failure; nobody foretells that.
_STARTS = text("""
WITH latest AS (
  SELECT model, host_id, tier, predicted_total_s AS predicted_s, total_s AS actual_s,
    row_number() OVER (PARTITION BY model, host_id, tier ORDER BY recorded_at DESC) AS age
  FROM startup_observations
  WHERE total_s > 0 AND predicted_total_s IS NOT NULL AND plans_tried = 1
    AND (CAST(:model AS text) IS NULL OR model = :model)
)
SELECT GROUPING(model) = 1 AS is_all, model, host_id, tier, count(*) AS starts,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY predicted_s) AS predicted_s,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY actual_s) AS actual_s,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY actual_s - predicted_s) AS bias_s,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(actual_s - predicted_s)) AS error_median_s,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY abs(actual_s - predicted_s)) AS error_p90_s,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(actual_s - predicted_s) / actual_s) AS error_median,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY abs(actual_s - predicted_s) / actual_s) AS error_p90
FROM latest WHERE age <= :last
GROUP BY GROUPING SETS ((model, host_id, tier), ())
ORDER BY GROUPING(model), model, host_id, tier
""")
_MOVES = text("""
WITH latest AS (
  SELECT model, host_class, predicted_s, seconds AS actual_s,
    row_number() OVER (PARTITION BY model, host_class ORDER BY recorded_at DESC) AS age
  FROM move_observations
  WHERE seconds > 0 AND (CAST(:model AS text) IS NULL OR model = :model)
)
SELECT model, host_class, count(*) AS moves,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY predicted_s) AS predicted_s,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY actual_s) AS actual_s,
  percentile_cont(0.5) WITHIN GROUP (ORDER BY abs(actual_s - predicted_s) / actual_s) AS error_median,
  percentile_cont(0.9) WITHIN GROUP (ORDER BY abs(actual_s - predicted_s) / actual_s) AS error_p90,
  coalesce(max(m.seconds_per_token), 0) AS seconds_per_token, coalesce(max(m.overhead_s), 0) AS overhead_s
FROM latest LEFT JOIN move_models m USING (model, host_class) WHERE age <= :last
GROUP BY model, host_class ORDER BY model, host_class
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartErrors:
    """Medians over the latest starts of one model on one host from one tier.

    `error_median` and `error_p90` are shares of what starts took. `bias_s` is above zero where they take
    longer than foretold.
    """

    starts: int
    predicted_s: float
    actual_s: float
    bias_s: float
    error_median_s: float
    error_p90_s: float
    error_median: float
    error_p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StartErrorsRow:
    model: str
    host_id: str
    tier: str
    errors: StartErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveErrorsRow:
    """The latest moves of one model to one class of hosts, and what is foretold of the next one."""

    model: str
    host_class: str
    moves: int
    predicted_s: float
    actual_s: float
    error_median: float
    error_p90: float
    seconds_per_token: float
    overhead_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateErrors:
    """`overall` is None before the first start."""

    starts: tuple[StartErrorsRow, ...]
    overall: StartErrors | None
    moves: tuple[MoveErrorsRow, ...]


async def read_estimate_errors(
    session: AsyncSession, *, model: str | None = None, last: int = 20
) -> EstimateErrors:
    """Of the `last` starts of each model, host and tier, and moves of each model and host class.

    Starts that were planned anew are left out: they spent their time on another host's failure.
    """
    asked = {"model": model, "last": last}
    rows: list[StartErrorsRow] = []
    overall: StartErrors | None = None
    for found in (await session.execute(_STARTS, asked)).mappings():
        errors = (
            StartErrors(**{name: found[name] for name in StartErrors.__slots__}) if found["starts"] else None
        )
        if found["is_all"]:
            overall = errors
        elif errors is not None:
            rows.append(
                StartErrorsRow(
                    model=found["model"], host_id=found["host_id"], tier=found["tier"], errors=errors
                )
            )
    moves = (await session.execute(_MOVES, asked)).mappings()
    return EstimateErrors(
        starts=tuple(rows), overall=overall, moves=tuple(MoveErrorsRow(**dict(found)) for found in moves)
    )
