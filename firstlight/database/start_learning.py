"""What the estimator learns from: predicted beside actual for every start, refitted at once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Select, case, func, literal, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import RecordStartInput
from firstlight.database.edges import edges_from_json, edges_to_json, prior_edge
from firstlight.database.tables import CheckpointRow, HostRow, InstanceRow, ModelRow, StartupObservationRow
from firstlight.domain.errors import UnknownHost, UnknownInstance
from firstlight.domain.estimator import PRIOR_ATTACH_S, attach_key
from firstlight.domain.fleet import Edge, Tier
from firstlight.domain.learning import TransferObservation, fit_edge, learned_seconds

# Hardware and networks change: what was seen long ago is no longer asked.
EDGE_OBSERVATIONS = 32
ATTACH_OBSERVATIONS = 16


async def record_start(session: AsyncSession, request: RecordStartInput) -> None:
    """Keep predicted beside actual, and refit the host's edges and the model's attach time.

    Idempotent per instance. Raises: UnknownInstance, UnknownHost.
    """
    plan = request.plan
    host = await session.get(
        HostRow, plan.host_id, with_for_update={"key_share": True}, populate_existing=True
    )
    if host is None:
        raise UnknownHost(f"there is no host {plan.host_id!r}", host_id=plan.host_id)
    await _upsert(session, plan.instance_id, await _observation(session, request, host))
    await _refit_edges(session, host)
    tier = Tier(request.phases.tier or plan.estimate.tier)
    await _refit_attach(session, model=plan.model, host_class=host.host_class, tier=tier)


async def record_first_token(
    session: AsyncSession,
    *,
    instance_id: str,
    first_token_s: float,
    request_to_first_token_s: float,
    prefill_s: float | None = None,
) -> None:
    """Add what the API saw of the first request a start served. Raises: UnknownInstance."""
    model = await session.scalar(select(InstanceRow.model).where(InstanceRow.instance_id == instance_id))
    if model is None:
        raise UnknownInstance(f"there is no instance {instance_id!r}", instance_id=instance_id)
    await _upsert(
        session,
        instance_id,
        {
            "model": model,
            "first_token_s": first_token_s,
            "prefill_s": prefill_s,
            "request_to_first_token_s": request_to_first_token_s,
        },
    )


async def _upsert(session: AsyncSession, instance_id: str, values: dict[str, object]) -> None:
    await session.execute(
        insert(StartupObservationRow)
        .values(instance_id=instance_id, **values)
        .on_conflict_do_update(index_elements=["instance_id"], set_=values)
    )


async def _observation(session: AsyncSession, request: RecordStartInput, host: HostRow) -> dict[str, object]:
    plan, phases = request.plan, request.phases
    exact_bytes = await session.scalar(
        select(CheckpointRow.size_bytes).where(CheckpointRow.checkpoint_id == plan.checkpoint.checkpoint_id)
    )
    estimate = plan.estimate
    return {
        "model": plan.model,
        "decision_id": plan.decision_id,
        "host_id": plan.host_id,
        "host_class": host.host_class,
        # The tier the bytes really came from; the plan may have been made before a prefetch ended.
        "tier": phases.tier or estimate.tier,
        "plans_tried": request.plans_tried,
        "size_bytes": exact_bytes or plan.checkpoint.size_bytes,
        "bytes_moved": phases.bytes_moved,
        "moving_at_unix_s": phases.moving_at_unix_s or None,
        "predicted_queue_s": estimate.queue_s,
        "predicted_download_s": estimate.download_s,
        "predicted_load_s": estimate.load_s,
        "predicted_attach_s": estimate.attach_s,
        "predicted_control_s": estimate.control_s,
        "predicted_free_s": estimate.free_s,
        "predicted_total_s": estimate.total_s,
        "queue_s": phases.queue_s,
        "download_s": phases.download_s,
        "load_s": phases.load_s,
        "attach_s": phases.attach_s,
        "control_s": phases.control_s,
        "free_s": phases.free_s,
        "total_s": phases.total_s,
    }


async def _refit_edges(session: AsyncSession, host: HostRow) -> None:
    edges = edges_from_json(host.edges)
    for edge in (Edge.REMOTE_TO_SSD, Edge.PEER_TO_DRAM, Edge.SSD_TO_DRAM):
        seen = [
            TransferObservation(int(size_bytes), float(elapsed_s))
            for size_bytes, elapsed_s in await session.execute(_transfers(host, edge))
        ]
        if seen:
            prior = prior_edge(edge, ssd_read_bytes_per_s=host.ssd_read_bytes_per_s)
            edges[edge] = fit_edge(seen, prior)
    host.edges = edges_to_json(edges)


def _transfers(host: HostRow, edge: Edge) -> Select[int, float]:
    """Bytes and seconds of the last transfers over the edge, newest first."""
    row = StartupObservationRow
    # What fits the pool lands there as it is fetched, and its estimate has no load. Where a source had to be
    # converted whole first, the load behind it is part of what fetching cost.
    lands_in_dram = or_(literal(host.dram_capacity_bytes == 0), row.size_bytes <= host.dram_capacity_bytes)
    until_in_dram = row.download_s + case((lands_in_dram, func.coalesce(row.load_s, 0.0)), else_=0.0)
    # A download counts by the larger of what goes in and what comes out, as the estimator does.
    size, elapsed, tiers = {
        Edge.REMOTE_TO_SSD: (
            func.greatest(row.size_bytes, func.coalesce(ModelRow.source_bytes, 0)),
            until_in_dram,
            [Tier.REMOTE],
        ),
        Edge.PEER_TO_DRAM: (row.size_bytes, row.download_s, [Tier.PEER]),
        Edge.SSD_TO_DRAM: (row.size_bytes, row.load_s, [Tier.REMOTE, Tier.SSD]),
    }[edge]
    return (
        select(size, elapsed)
        .outerjoin(ModelRow, ModelRow.name == row.model)
        .where(row.host_id == host.host_id, row.tier.in_(tiers), elapsed > 0, row.size_bytes > 0)
        .order_by(row.recorded_at.desc())
        .limit(EDGE_OBSERVATIONS)
    )


async def _refit_attach(session: AsyncSession, *, model: str, host_class: str, tier: Tier) -> None:
    """From starts whose bytes were there already, or from those that attached while bytes came."""
    row = StartupObservationRow
    is_alike = row.tier == Tier.DRAM if tier is Tier.DRAM else row.tier != Tier.DRAM
    observed: Sequence[float | None] = (
        await session.scalars(
            select(row.attach_s)
            .where(row.model == model, row.host_class == host_class, row.attach_s.is_not(None), is_alike)
            .order_by(row.recorded_at.desc())
            .limit(ATTACH_OBSERVATIONS)
        )
    ).all()
    seconds = learned_seconds([value for value in observed if value is not None], PRIOR_ATTACH_S)
    # The model may have been deleted meanwhile; then there is nothing to teach.
    found = await session.scalar(
        select(ModelRow).where(ModelRow.name == model).with_for_update(key_share=True)
    )
    if found is not None:
        found.attach_s = {**found.attach_s, attach_key(host_class, tier): seconds}
