"""The fleet as the scheduler sees it, read in one round trip and in one statement's snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.loads import IDLE_AFTER_S, EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.database.decision_json import estimate_from_json
from firstlight.database.edges import edges_from_json, remaining_bytes
from firstlight.database.move_learning import moves_from_rows
from firstlight.database.running_view import free_within_s, running_instances, serving_instances
from firstlight.domain.errors import UnknownModel
from firstlight.domain.estimator import PRIOR_CONTROL_S
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Gpu, Host, Model, StartUnderWay, Tier
from firstlight.domain.learning import learned_overhead_s
from firstlight.domain.lifecycle import HostState, InstanceState, ModelState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName

# A draining instance ends within its drain timeout, mostly at once.
DRAINING_FREE_IN_S = 5.0
# Figures of an engine whose host's agent has been silent for longer say nothing: it is left alone.
LOAD_COUNTS_FOR_S = 15.0
# Starts that the share of control work is learned from.
CONTROL_OBSERVATIONS = 32

# What every picture of the fleet needs, whoever it is for; each is one column of the answer.
_HOSTS = """
  (SELECT json_agg(row_to_json(h) ORDER BY h.host_id) FROM (
    SELECT host_id, host_class, edges, dram_capacity_bytes, ssd_capacity_bytes, peer_endpoint,
      host_address, store_address,
      -- A host whose lease has run out takes no plan, even before anybody has marked it.
      CASE WHEN lease_expires_at < now() THEN 'lost' ELSE state END AS state
    FROM hosts) h) AS hosts,
  (SELECT json_agg(row_to_json(g)) FROM (
    SELECT gpus.host_id, gpus.gpu_index, gpus.memory_bytes, r.instance_id, i.state,
      -- What is promised to a start comes back to nobody else.
      CASE WHEN m.min_instances = 0 THEN i.keep_alive_s END AS free_in_s, p.instance_id AS heir
    FROM gpus
    LEFT JOIN reservations r USING (host_id, gpu_index)
    LEFT JOIN promises p USING (host_id, gpu_index)
    LEFT JOIN instances i ON i.instance_id = r.instance_id
    LEFT JOIN models m ON m.model_id = i.model_id) g) AS gpus,
  (SELECT json_agg(row_to_json(s)) FROM (
    SELECT i.instance_id, i.model, i.host_id, d.estimate,
      extract(epoch FROM clock_timestamp() - i.planned_at) AS elapsed_s,
      coalesce(c.size_bytes, m.size_bytes) AS size_bytes, m.source_bytes
    FROM instances i
    JOIN decisions d USING (decision_id)
    JOIN models m ON m.model_id = i.model_id
    JOIN checkpoints c ON c.checkpoint_id = i.checkpoint_id
    WHERE i.is_live AND i.state = 'starting') s) AS starts,
  (SELECT json_agg(row_to_json(n)) FROM (
    SELECT i.instance_id, i.model, i.host_id, i.epoch, i.endpoint,
      (SELECT array_agg(r.gpu_index ORDER BY r.gpu_index) FROM reservations r
        WHERE r.instance_id = i.instance_id) AS gpu_indices,
      l.requests, l.tokens,
      extract(epoch FROM clock_timestamp() - l.idle_since) AS idle_s,
      -- Of the bin that its quiet has reached: below a second, then four an octave.
      a.expected_idle_s[CASE WHEN l.idle_since > clock_timestamp() - interval '1 second' THEN 1
        ELSE 2 + floor(4 * log(2, extract(epoch FROM clock_timestamp() - l.idle_since)))::int END
      ] AS expected_idle_for_s,
      coalesce(l.seen_at > clock_timestamp() - make_interval(secs => :load_counts_for_s), false) AS is_known,
      EXISTS (SELECT FROM reservations r JOIN promises p USING (host_id, gpu_index)
        WHERE r.instance_id = i.instance_id) AS gives_way,
      EXISTS (SELECT FROM migrations g WHERE g.state = 'running'
        AND i.instance_id IN (g.source_instance_id, g.destination_instance_id)) AS moves
    FROM instances i LEFT JOIN engine_loads l USING (instance_id) LEFT JOIN arrivals a USING (model_id)
    WHERE i.is_live AND i.state = 'ready' ORDER BY i.created_at) n) AS running,
  (SELECT json_agg(row_to_json(v)) FROM (
    SELECT * FROM move_models
    WHERE model IN (SELECT model FROM instances WHERE is_live AND state = 'ready')) v) AS moves,
  (SELECT json_agg(control_s) FROM (
    SELECT control_s FROM startup_observations
    WHERE control_s IS NOT NULL AND plans_tried = 1 AND tier = 'dram'
    ORDER BY recorded_at DESC LIMIT :observations) o) AS control,
  (SELECT json_agg(control_s) FROM (
    SELECT control_s FROM startup_observations
    WHERE control_s IS NOT NULL AND plans_tried = 1 AND tier <> 'dram'
    ORDER BY recorded_at DESC LIMIT :observations) o) AS control_beside_bytes
"""
# S608: joined of constants; every value is a bound parameter.
_READ = text(f"""
WITH wanted AS (
  SELECT m.*, c.manifest_digest, c.size_bytes AS exact_bytes
  FROM models m JOIN checkpoints c USING (checkpoint_id) WHERE m.name = :model
)
SELECT
  (SELECT row_to_json(wanted) FROM wanted) AS wanted,
  (SELECT json_agg(row_to_json(w)) FROM (
    SELECT m.*, c.manifest_digest, c.size_bytes AS exact_bytes
    FROM models m JOIN checkpoints c USING (checkpoint_id)
    WHERE m.state = 'active'
      AND m.model_id IN (SELECT model_id FROM instances WHERE is_live AND state = 'ready')) w) AS models,
  -- Those of what runs too: it may have to move to where its bytes are near.
  (SELECT json_agg(row_to_json(p)) FROM (
    SELECT host_id, checkpoint_id, tier FROM placements
    WHERE state = 'ready' AND checkpoint_id IN (
      SELECT checkpoint_id FROM wanted
      UNION SELECT checkpoint_id FROM instances WHERE is_live AND state = 'ready')) p) AS placements,
  (SELECT json_agg(row_to_json(l)) FROM (
    SELECT instance_id, state FROM instances
    WHERE is_live AND state <> 'draining' AND model_id = (SELECT model_id FROM wanted)
    ORDER BY created_at) l) AS live,
{_HOSTS}
""")  # noqa: S608
_READ_ALL = text(f"""
SELECT
  (SELECT json_agg(row_to_json(w)) FROM (
    SELECT m.*, c.manifest_digest, c.size_bytes AS exact_bytes
    FROM models m JOIN checkpoints c USING (checkpoint_id) WHERE m.state = 'active') w) AS models,
  (SELECT json_agg(row_to_json(p)) FROM (
    SELECT host_id, checkpoint_id, tier FROM placements WHERE state = 'ready') p) AS placements,
{_HOSTS}
""")  # noqa: S608

_CONSTANTS = {"observations": CONTROL_OBSERVATIONS, "load_counts_for_s": LOAD_COUNTS_FOR_S}

# Any: rows of the statements above; each is read by exactly one function below.
_Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedModel:
    """The model to be started, with what its instance and plan are made of."""

    model_id: int
    model: Model
    state: ModelState
    source: str
    dtype: str
    manifest_digest: str
    context_length: int
    max_instances: int
    max_concurrency: int
    keep_alive_s: float
    # How the KV cache of its requests travels when an instance of it moves.
    transfer: str = "exact"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    wanted: WantedModel
    snapshot: FleetSnapshot
    # Instances that serve, of any model: where their engines are.
    serving: Mapping[InstanceId, MovingInstance]
    # The wanted model's instances that start or serve, oldest first.
    starting: tuple[InstanceId, ...]
    ready: tuple[InstanceId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPicture:
    """The fleet and all models in service; `addresses` are (supervisor, store) by host."""

    models: Mapping[str, WantedModel]
    snapshot: FleetSnapshot
    addresses: Mapping[str, tuple[str, str]]


async def read_fleet(
    session: AsyncSession,
    *,
    model: str,
    now_unix_s: float,
    loads: Mapping[str, EngineLoad | None] | None = None,
) -> FleetView:
    """`loads`: what engines have just said themselves; None for one that did not answer.

    Raises: UnknownModel.
    """
    row: _Row = dict((await session.execute(_READ, {"model": model, **_CONSTANTS})).one()._mapping)
    if row["wanted"] is None:
        raise UnknownModel(f"there is no model {model!r}", model=model)
    wanted = _wanted(row["wanted"])
    snapshot = _snapshot(row, now_unix_s=now_unix_s, loads=loads or {}, priority=wanted.model.priority)
    live = row["live"] or []
    return FleetView(
        wanted=wanted,
        snapshot=snapshot,
        serving=serving_instances(row["running"] or []),
        starting=_in_state(live, InstanceState.STARTING),
        ready=_in_state(live, InstanceState.READY),
    )


async def read_picture(session: AsyncSession, *, now_unix_s: float) -> FleetPicture:
    """Everything a decision about any model would look at, read in one statement."""
    row: _Row = dict((await session.execute(_READ_ALL, _CONSTANTS)).one()._mapping)
    wanted = [_wanted(model) for model in row["models"] or []]
    return FleetPicture(
        models={one.model.name: one for one in wanted},
        snapshot=_snapshot(row, now_unix_s=now_unix_s, loads={}),
        addresses={
            host["host_id"]: (host["host_address"], host["store_address"]) for host in row["hosts"] or []
        },
    )


def _snapshot(
    row: _Row,
    *,
    now_unix_s: float,
    loads: Mapping[str, EngineLoad | None],
    priority: int | None = None,
) -> FleetSnapshot:
    starts, running = row["starts"] or [], row["running"] or []
    models = {model["name"]: _wanted(model).model for model in row["models"] or []}
    within_s = free_within_s(running, models=models, loads=loads, priority=priority)
    gpus, placements, queued = (_by_host(row[name]) for name in ("gpus", "placements", "starts"))
    uplinks = _uplink_bytes(row["hosts"] or [], starts)
    return FleetSnapshot(
        taken_at_unix_s=now_unix_s,
        hosts=tuple(
            _host(
                host,
                gpus=[_gpu(gpu, within_s) for gpu in gpus[host["host_id"]]],
                placements=placements[host["host_id"]],
                starts=queued[host["host_id"]],
                uplink_queued_bytes=uplinks[host["host_id"]],
            )
            for host in row["hosts"] or []
        ),
        starts=tuple(_start(start) for start in starts),
        control_s=learned_overhead_s(row["control"] or [], PRIOR_CONTROL_S),
        control_beside_bytes_s=learned_overhead_s(row["control_beside_bytes"] or [], PRIOR_CONTROL_S),
        moves=moves_from_rows(row["moves"] or []),
        running=running_instances(running, models=models, loads=loads),
    )


def _by_host(rows: list[_Row] | None) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = defaultdict(list)
    for row in rows or []:
        found[row["host_id"]].append(row)
    return found


def _uplink_bytes(hosts: list[_Row], starts: list[_Row]) -> dict[str, int]:
    """Bytes that starts elsewhere have still to fetch, by the host that gives them."""
    edges = {host["host_id"]: edges_from_json(host["edges"]) for host in hosts}
    dram_bytes = {host["host_id"]: host["dram_capacity_bytes"] for host in hosts}
    found: dict[str, int] = defaultdict(int)
    for start in starts:
        if giver := start["estimate"].get("peer_host_id"):
            remaining = _remaining(edges.get(start["host_id"], {}), start, dram_bytes[start["host_id"]])
            found[giver] += remaining.get(Edge.PEER_TO_DRAM, 0)
    return found


def _in_state(live: list[_Row], state: InstanceState) -> tuple[InstanceId, ...]:
    return tuple(InstanceId(row["instance_id"]) for row in live if row["state"] == state)


def _wanted(row: _Row) -> WantedModel:
    return WantedModel(
        model_id=row["model_id"],
        model=Model(
            name=ModelName(row["name"]),
            checkpoint_id=CheckpointId(row["checkpoint_id"]),
            size_bytes=row["exact_bytes"] or row["size_bytes"],
            source_bytes=row["source_bytes"],
            gpu_count=row["gpu_count"],
            attach_s=row["attach_s"],
            priority=row["priority"],
            min_instances=row["min_instances"],
            max_instances=row["max_instances"],
        ),
        state=ModelState(row["state"]),
        source=row["source"],
        dtype=row["dtype"],
        manifest_digest=row["manifest_digest"] or "",
        context_length=row["context_length"],
        max_instances=row["max_instances"],
        max_concurrency=row["max_concurrency"],
        keep_alive_s=row["keep_alive_s"],
        transfer=row["transfer"],
    )


def _host(
    host: _Row, *, gpus: list[Gpu], placements: list[_Row], starts: list[_Row], uplink_queued_bytes: int
) -> Host:
    edges = edges_from_json(host["edges"])
    return Host(
        host_id=HostId(host["host_id"]),
        host_class=host["host_class"],
        state=HostState(host["state"]),
        gpus=tuple(gpus),
        edges=edges,
        tiers=_tiers(placements),
        queued_bytes=_queued_bytes(edges, starts, host["dram_capacity_bytes"]),
        dram_capacity_bytes=host["dram_capacity_bytes"],
        ssd_capacity_bytes=host["ssd_capacity_bytes"],
        peer_endpoint=host["peer_endpoint"],
        uplink_queued_bytes=uplink_queued_bytes,
    )


def _tiers(placements: list[_Row]) -> dict[CheckpointId, Tier]:
    """The nearest tier of each checkpoint."""
    found: dict[CheckpointId, Tier] = {}
    for place in placements:
        key, tier = CheckpointId(place["checkpoint_id"]), Tier(place["tier"])
        if found.get(key) is not Tier.DRAM:
            found[key] = tier
    return found


def _queued_bytes(
    edges: Mapping[Edge, EdgeModel], starts: list[_Row], dram_capacity_bytes: int
) -> dict[Edge, int]:
    queued = {Edge.REMOTE_TO_SSD: 0, Edge.PEER_TO_DRAM: 0, Edge.SSD_TO_DRAM: 0}
    for start in starts:
        for edge, size_bytes in _remaining(edges, start, dram_capacity_bytes).items():
            queued[edge] += size_bytes
    return queued


def _remaining(edges: Mapping[Edge, EdgeModel], start: _Row, dram_capacity_bytes: int) -> dict[Edge, int]:
    return remaining_bytes(
        edges,
        tier=Tier(start["estimate"]["tier"]),
        size_bytes=start["size_bytes"],
        source_bytes=start["source_bytes"],
        elapsed_s=start["elapsed_s"],
        lands_in_dram=not 0 < dram_capacity_bytes < start["size_bytes"],
    )


def _gpu(row: _Row, within_s: Mapping[str, float]) -> Gpu:
    free_in_s = _free_in_s(row, within_s)
    # One that has been idle for long enough is no matter of waiting: a plan may end it now.
    is_over = (
        row["state"] == InstanceState.DRAINING or 0 < within_s.get(row["instance_id"], 0) <= IDLE_AFTER_S
    )
    return Gpu(
        index=row["gpu_index"],
        memory_bytes=row["memory_bytes"],
        instance_id=InstanceId(row["instance_id"]) if row["instance_id"] else None,
        free_in_s=free_in_s,
        is_given_up=free_in_s is not None and is_over,
    )


def _free_in_s(row: _Row, within_s: Mapping[str, float]) -> float | None:
    """When a held GPU may come back: once its instance is idle for long enough to give way, or to end."""
    if row["heir"] is not None:
        return None
    if row["state"] == InstanceState.DRAINING:
        return DRAINING_FREE_IN_S
    if row["state"] == InstanceState.READY and row["free_in_s"] is not None:
        keep_alive_s = float(row["free_in_s"])
        return min(keep_alive_s, within_s.get(row["instance_id"], keep_alive_s))
    return None


def _start(row: _Row) -> StartUnderWay:
    estimate = estimate_from_json(row["estimate"])
    return StartUnderWay(
        instance_id=InstanceId(row["instance_id"]),
        model=ModelName(row["model"]),
        host_id=HostId(row["host_id"]),
        ready_in_s=max(0.0, estimate.total_s - row["elapsed_s"]),
    )
