"""What would be decided for a model now, and why: the production decision, made and thrown away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.loads import EngineLoad
from firstlight.contracts.migrations import MovingInstance
from firstlight.database.fleet_view import FleetView, read_fleet
from firstlight.database.instance_limits import at_maximum
from firstlight.domain.errors import ModelBeingDeleted
from firstlight.domain.explaining import WayTerms, explain_ways
from firstlight.domain.fleet import StartRequest
from firstlight.domain.lifecycle import ModelState
from firstlight.domain.names import HostId, InstanceId
from firstlight.domain.scheduler import Candidate, Decision, Migrate, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """`decision` is what the next start would be answered; `candidates` are all hosts, whatever it is.

    `ways` has every way of starting on a host, soonest first, for hosts that could take the model at all.
    """

    model: str
    size_bytes: int
    gpu_count: int
    decided_at_unix_s: float
    ready: tuple[InstanceId, ...]
    starting: tuple[InstanceId, ...]
    decision: Decision
    candidates: tuple[Candidate, ...]
    # Instances that the decision would have give way, or take what moves.
    concerned: tuple[MovingInstance, ...]
    ways: Mapping[HostId, tuple[WayTerms, ...]]


async def explain_start(
    session: AsyncSession,
    *,
    model: str,
    now_unix_s: float,
    deadline_s: float | None = None,
    loads: Mapping[str, EngineLoad | None] | None = None,
) -> Explanation:
    """Decide as `plan_start` would, for a request that wants another instance; writes nothing.

    `loads` is what engines have just said that they have to do (None: one did not answer); of others counts
    what their hosts wrote last.
    Raises: UnknownModel, ModelBeingDeleted, DatabaseUnavailable.
    """
    # The database holds us to it.
    await session.execute(text("SET TRANSACTION READ ONLY"))
    view = await read_fleet(session, model=model, now_unix_s=now_unix_s, loads=loads)
    if view.wanted.state is ModelState.DELETING:
        raise ModelBeingDeleted(f"model {model!r} is being deleted", model=model)
    request = StartRequest(view.wanted.model, deadline_s)
    decision = at_maximum(view, may_wait=True) or decide(request, view.snapshot)
    candidates = tuple(decision.candidates) or _beyond_the_maximum(view)
    able = {candidate.host_id for candidate in candidates if candidate.estimate is not None}
    return Explanation(
        model=model,
        size_bytes=view.wanted.model.size_bytes,
        gpu_count=view.wanted.model.gpu_count,
        decided_at_unix_s=now_unix_s,
        ready=view.ready,
        starting=view.starting,
        decision=decision,
        candidates=candidates,
        concerned=_concerned(decision, view),
        ways={
            host.host_id: explain_ways(view.wanted.model, host, view.snapshot)
            for host in view.snapshot.hosts
            if host.host_id in able
        },
    )


def _concerned(decision: Decision, view: FleetView) -> tuple[MovingInstance, ...]:
    victims = decision.victims if isinstance(decision, Migrate) else ()
    named = [one.instance_id for one in victims]
    named += [one.to_instance_id for one in victims if one.to_instance_id is not None]
    return tuple(view.serving[one] for one in named)


def _beyond_the_maximum(view: FleetView) -> tuple[Candidate, ...]:
    """Where a further instance would go if the model were allowed one: the hosts are still of interest."""
    model = replace(view.wanted.model, max_instances=None)
    return tuple(decide(StartRequest(model, may_wait=False), view.snapshot).candidates)
