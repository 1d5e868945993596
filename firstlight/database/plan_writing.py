"""Making a decision real: rows of the decision, the instance and its reservations, in one statement."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.starts import CheckpointRef, PlannedVictim, StartPlan
from firstlight.database.decision_json import candidates_to_json, estimate_to_json, planned_estimate
from firstlight.database.failures import constraint_of
from firstlight.database.fleet_view import FleetView, WantedModel
from firstlight.domain.estimator import givers_of
from firstlight.domain.fleet import FleetSnapshot, Model, Tier
from firstlight.domain.scheduler import Decision, Migrate, Place, Reject, Wait


class GpuTaken(Exception):
    """Another decision has just taken a GPU of this one: look again. Never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the caller asked for, as kept with the decision."""

    request_id: str
    model: str
    deadline_s: float | None
    # The decision whose plan failed, if this one replaces it.
    replaces: str | None = None


def new_id(prefix: str) -> str:
    """An id nobody can guess or meet twice: `<prefix>-` and 16 hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(8)}"


_RESERVE = """
  held AS (
    INSERT INTO reservations (host_id, gpu_index, instance_id, epoch)
    SELECT :host_id, gpu_index, :instance_id, value
    -- In order, so that two plans for the same GPUs meet at the first and not across.
    FROM epoch, unnest(CAST(:free_indices AS bigint[])) AS gpu_index ORDER BY gpu_index
  ),
  promised AS (
    INSERT INTO promises (host_id, gpu_index, instance_id, epoch)
    SELECT :host_id, gpu_index, :instance_id, value
    FROM epoch, unnest(CAST(:held_indices AS bigint[])) AS gpu_index ORDER BY gpu_index
  )
"""
_DECIDE_PLACE = """
INSERT INTO decisions (decision_id, request_id, model, kind, reason, host_id, instance_id, epoch, gpu_indices,
  estimate, candidates, victims, deadline_s, replaces)
SELECT :decision_id, :request_id, :model, :kind, :reason, :host_id, :instance_id, value, :gpu_indices,
  CAST(:estimate AS jsonb), CAST(:candidates AS jsonb), CAST(:victims AS jsonb), :deadline_s, :replaces
FROM epoch RETURNING epoch
"""
# S608: these are joined of the constants here; every value is a bound parameter.
_PLACE = text(f"""
WITH epoch AS (SELECT nextval('fencing_epoch') AS value),
  placed AS (
    INSERT INTO instances (instance_id, model_id, model, host_id, state, epoch, decision_id, checkpoint_id,
      gpu_count, max_concurrency, keep_alive_s)
    SELECT :instance_id, :model_id, :model, :host_id, 'starting', value, :decision_id, :checkpoint_id,
      :gpu_count, :max_concurrency, :keep_alive_s
    FROM epoch
  ),
{_RESERVE}
{_DECIDE_PLACE}
""")  # noqa: S608
_MOVE = text(f"""
WITH epoch AS (SELECT nextval('fencing_epoch') AS value),
  moved AS (
    UPDATE instances SET host_id = :host_id, epoch = value, decision_id = :decision_id, planned_at = now()
    FROM epoch WHERE instance_id = :instance_id
  ),
{_RESERVE}
{_DECIDE_PLACE}
""")  # noqa: S608
_DECIDE_OTHER = text("""
INSERT INTO decisions (decision_id, request_id, model, kind, reason, instance_id, gpu_indices, candidates,
  deadline_s, replaces)
VALUES (:decision_id, :request_id, :model, :kind, :reason, :instance_id, '{}',
  CAST(:candidates AS jsonb), :deadline_s, :replaces)
""")


async def write_place(
    session: AsyncSession,
    *,
    asked: Asked,
    view: FleetView,
    decision: Place | Migrate,
    reason: str,
    instance_id: str | None = None,
    held: Sequence[int] = (),
    victims: Sequence[PlannedVictim] = (),
) -> StartPlan:
    """Reserve the GPUs under a new epoch for a new instance, or for `instance_id`, which moves there.

    Of the decision's GPUs those `held` are still another instance's, whose row the caller has locked: they
    are promised, and become this start's when they are given back.
    Raises: GpuTaken; the transaction is then lost.
    """
    decision_id = new_id("d")
    wanted = view.wanted
    values = {
        **_asked(asked, decision_id, decision),
        "kind": "migrate" if isinstance(decision, Migrate) else "place",
        "reason": reason,
        "instance_id": instance_id or new_id("i"),
        "model_id": wanted.model_id,
        "host_id": decision.host_id,
        "gpu_indices": list(decision.gpu_indices),
        "free_indices": [index for index in decision.gpu_indices if index not in held],
        "held_indices": sorted(held),
        "victims": json.dumps([asdict(victim) for victim in victims]),
        "gpu_count": len(decision.gpu_indices),
        "checkpoint_id": wanted.model.checkpoint_id,
        "max_concurrency": wanted.max_concurrency,
        "keep_alive_s": wanted.keep_alive_s,
        "estimate": json.dumps(estimate_to_json(decision.estimate)),
    }
    try:
        written = await session.execute(_MOVE if instance_id else _PLACE, values)
    except IntegrityError as error:
        if constraint_of(error) in ("pk_reservations", "pk_promises"):
            raise GpuTaken from error
        raise
    return StartPlan(
        decision_id=decision_id,
        instance_id=str(values["instance_id"]),
        epoch=written.scalar_one(),
        host_id=decision.host_id,
        gpu_indices=list(decision.gpu_indices),
        model=wanted.model.name,
        checkpoint=checkpoint_ref(wanted, peer_endpoints(wanted.model, decision, view.snapshot)),
        estimate=planned_estimate(decision.estimate),
        max_concurrency=wanted.max_concurrency,
        keep_alive_s=wanted.keep_alive_s,
        decided_at_unix_s=view.snapshot.taken_at_unix_s,
        context_length=wanted.context_length,
        victims=list(victims),
        awaits_gpus=bool(held),
    )


async def write_refusal(session: AsyncSession, *, asked: Asked, decision: Wait | Reject) -> str:
    """Keep a decision that starts nothing; returns its id."""
    decision_id = new_id("d")
    values = {
        **_asked(asked, decision_id, decision),
        "kind": "wait" if isinstance(decision, Wait) else "reject",
        "reason": decision.reason,
        "instance_id": decision.instance_id if isinstance(decision, Wait) else None,
    }
    await session.execute(_DECIDE_OTHER, values)
    return decision_id


def checkpoint_ref(wanted: WantedModel, peers: Sequence[str] = ()) -> CheckpointRef:
    return CheckpointRef(
        checkpoint_id=wanted.model.checkpoint_id,
        source=wanted.source,
        dtype=wanted.dtype,
        size_bytes=wanted.model.size_bytes,
        manifest_digest=wanted.manifest_digest,
        peer_endpoints=list(peers),
    )


def peer_endpoints(model: Model, decision: Place | Migrate, snapshot: FleetSnapshot) -> list[str]:
    """Where the chosen host may fetch from, the chosen peer first; empty if the source is the better way.

    Of a host that has it, where it goes on should its own copy turn out to be bad.
    """
    estimate = decision.estimate
    if estimate.tier is Tier.REMOTE:
        return []
    givers = [host for host in givers_of(model, snapshot) if host.host_id != decision.host_id]
    return [
        host.peer_endpoint for host in sorted(givers, key=lambda host: host.host_id != estimate.peer_host_id)
    ]


def _asked(asked: Asked, decision_id: str, decision: Decision) -> dict[str, object]:
    return {
        "decision_id": decision_id,
        "request_id": asked.request_id,
        "model": asked.model,
        "deadline_s": asked.deadline_s,
        "replaces": asked.replaces,
        "candidates": json.dumps(candidates_to_json(decision.candidates)),
    }
