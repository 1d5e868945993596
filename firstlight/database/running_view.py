"""Instances that serve, as the scheduler sees them: what freeing their GPUs would mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from firstlight.contracts.loads import IDLE_AFTER_S, EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.domain.fleet import Model, Running
from firstlight.domain.names import HostId, InstanceId

# A request of a few hundred tokens.
PRIOR_BUSY_S = 10.0
# Any: rows of the one statement that reads the fleet.
_Row = Mapping[str, Any]


def running_instances(
    rows: Sequence[_Row], *, models: Mapping[str, Model], loads: Mapping[str, EngineLoad | None]
) -> tuple[Running, ...]:
    """Those that may give way: of models in service, that neither move nor give way already.

    What an engine has just said itself (`loads`) counts for more than what its host's agent wrote. One whose
    load nobody knows is left out, and so is never touched.
    """
    return tuple(
        _running(row, models[row["model"]], load)
        for row in rows
        if _may_give_way(row, models)
        if (load := _load(row, loads)) is not None
    )


def free_within_s(
    rows: Sequence[_Row],
    *,
    models: Mapping[str, Model],
    loads: Mapping[str, EngineLoad | None],
    priority: int | None,
) -> dict[str, float]:
    """By instance: in how many seconds one that stands in nobody's way now may give way because it is idle.

    For a model of `priority`; None: of any. A guess for those that are busy: nobody knows when they end.
    """
    return {
        row["instance_id"]: _idle_enough_in_s(load)
        for row in rows
        if _may_give_way(row, models)
        if priority is None or models[row["model"]].priority <= priority
        if (load := _load(row, loads)) is not None
    }


def _may_give_way(row: _Row, models: Mapping[str, Model]) -> bool:
    return bool(row["model"] in models and not row["gives_way"] and not row["moves"] and row["gpu_indices"])


def _idle_enough_in_s(load: EngineLoad) -> float:
    if load.idle_s is None:
        return PRIOR_BUSY_S + IDLE_AFTER_S
    return max(0.0, IDLE_AFTER_S - load.idle_s)


def serving_instances(rows: Sequence[_Row]) -> dict[InstanceId, MovingInstance]:
    return {
        InstanceId(row["instance_id"]): MovingInstance(
            row["instance_id"], row["epoch"], row["host_id"], row["endpoint"]
        )
        for row in rows
    }


def _load(row: _Row, loads: Mapping[str, EngineLoad | None]) -> EngineLoad | None:
    if row["instance_id"] in loads:
        return loads[row["instance_id"]]
    if not row["is_known"]:
        return None
    return EngineLoad(
        instance_id=row["instance_id"], requests=row["requests"], tokens=row["tokens"], idle_s=row["idle_s"]
    )


def _running(row: _Row, model: Model, load: EngineLoad) -> Running:
    is_idle = load.idle_s is not None and load.idle_s >= IDLE_AFTER_S
    return Running(
        instance_id=InstanceId(row["instance_id"]),
        model=model,
        host_id=HostId(row["host_id"]),
        gpu_indices=tuple(row["gpu_indices"]),
        requests=load.requests,
        tokens=load.tokens,
        idle_s=load.idle_s if is_idle else None,
        expected_idle_for_s=row["expected_idle_for_s"] if is_idle else None,
    )
