"""Shapes of explanations and of estimates' errors, as OpenAPI shows them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from api.admin.fields import CandidateAnswer, EstimateAnswer, VictimAnswer
from api.admin.plain import plain
from firstlight.contracts.loads import EngineLoad
from firstlight.database.explaining import Explanation, explain_start
from firstlight.domain.scheduler import Decision, Migrate, Place, Reject, Wait
from firstlight.rpc.engine_loads import EngineLoads

if TYPE_CHECKING:
    from api.services import Services


class EdgeTermsAnswer(BaseModel):
    edge: str
    size_bytes: int
    queued_bytes: int
    overhead_s: float
    bandwidth_bytes_per_s: float
    observations: int
    queue_s: float
    transfer_s: float
    is_beside: bool


class WayTermsAnswer(BaseModel):
    tier: str
    peer_host_id: str | None
    edges: list[EdgeTermsAnswer]
    attach_s: float
    is_attach_learned: bool
    control_s: float
    total_s: float


class ExplainedCandidate(CandidateAnswer):
    ways: list[WayTermsAnswer]


class ExplainedDecision(BaseModel):
    kind: Literal["place", "migrate", "wait", "reject"]
    reason: str
    host_id: str | None
    gpu_indices: list[int]
    estimate: EstimateAnswer | None
    victims: list[VictimAnswer]
    instance_id: str | None
    ready_in_s: float | None
    retry_after_s: float | None


class ExplanationAnswer(BaseModel):
    model: str
    size_bytes: int
    gpu_count: int
    decided_at_unix_s: float
    ready: list[str]
    starting: list[str]
    decision: ExplainedDecision
    candidates: list[ExplainedCandidate]


class StartErrorsAnswer(BaseModel):
    starts: int
    predicted_s: float
    actual_s: float
    bias_s: float
    error_median_s: float
    error_p90_s: float
    error_median: float
    error_p90: float


class StartErrorsRowAnswer(BaseModel):
    model: str
    host_id: str
    tier: str
    errors: StartErrorsAnswer


class MoveErrorsAnswer(BaseModel):
    model: str
    host_class: str
    moves: int
    predicted_s: float
    actual_s: float
    error_median: float
    error_p90: float
    seconds_per_token: float
    overhead_s: float


class EstimateErrorsAnswer(BaseModel):
    starts: list[StartErrorsRowAnswer]
    overall: StartErrorsAnswer | None
    moves: list[MoveErrorsAnswer]


async def explain(services: Services, model: str) -> ExplanationAnswer:
    """Engines that would give way are asked, as for a decision that is meant.

    Raises: UnknownModel, ModelBeingDeleted, DatabaseUnavailable.
    """
    loads: dict[str, EngineLoad | None] = {}
    while True:
        async with services.database.session() as session:
            found = await explain_start(
                session,
                model=model,
                now_unix_s=time.time(),
                deadline_s=services.settings.start_timeout_s,
                loads=loads,
            )
        # Each round asks some that no round before has asked, so it ends.
        unasked = [one for one in found.concerned if one.instance_id not in loads]
        if not unasked:
            break
        loads.update(await EngineLoads(services.channels).ask(unasked))
    return ExplanationAnswer.model_validate(
        {
            **{name: plain(getattr(found, name)) for name in ("model", "size_bytes", "gpu_count")},
            "decided_at_unix_s": found.decided_at_unix_s,
            "ready": found.ready,
            "starting": found.starting,
            "decision": _decision(found.decision),
            "candidates": _candidates(found),
        }
    )


def _decision(decision: Decision) -> dict[str, object]:
    told: dict[str, object] = {
        "kind": type(decision).__name__.lower(),
        "host_id": None,
        "gpu_indices": [],
        "estimate": None,
        "victims": [],
        "instance_id": None,
        "ready_in_s": None,
        "retry_after_s": None,
    }
    match decision:
        case Place() | Migrate():
            return {
                **told,
                "reason": "the soonest start",
                "host_id": decision.host_id,
                "gpu_indices": decision.gpu_indices,
                "estimate": plain(decision.estimate),
                "victims": plain(decision.victims) if isinstance(decision, Migrate) else [],
                "ready_in_s": decision.estimate.total_s,
            }
        case Wait():
            joined = {"instance_id": decision.instance_id, "ready_in_s": decision.ready_in_s}
            return {**told, **joined, "reason": decision.reason}
        case Reject():
            return {**told, "reason": decision.reason, "retry_after_s": decision.retry_after_s}


def _candidates(found: Explanation) -> list[object]:
    rows: list[object] = []
    for candidate in found.candidates:
        row = plain(candidate)
        assert isinstance(row, dict), "a dataclass becomes an object"
        rows.append({**row, "ways": plain(found.ways.get(candidate.host_id, ()))})
    return rows
