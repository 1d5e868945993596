"""Decisions as JSON documents and as text: what is kept, and what a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from firstlight.contracts.starts import PlannedEstimate
from firstlight.domain.estimator import StartEstimate
from firstlight.domain.fleet import Tier
from firstlight.domain.names import HostId
from firstlight.domain.scheduler import Candidate, Victim, VictimAction

# Any below: JSON documents this module has written.


def planned_estimate(estimate: StartEstimate) -> PlannedEstimate:
    return PlannedEstimate(
        queue_s=estimate.queue_s,
        download_s=estimate.download_s,
        load_s=estimate.load_s,
        attach_s=estimate.attach_s,
        control_s=estimate.control_s,
        tier=str(estimate.tier),
        peer_host_id=estimate.peer_host_id or "",
        free_s=estimate.free_s,
    )


def estimate_to_json(estimate: StartEstimate) -> dict[str, object]:
    return {**asdict(estimate), "tier": str(estimate.tier)}


def estimate_from_json(document: Mapping[str, Any]) -> PlannedEstimate:
    return PlannedEstimate(
        queue_s=document["queue_s"],
        download_s=document["download_s"],
        load_s=document["load_s"],
        attach_s=document["attach_s"],
        control_s=document["control_s"],
        tier=document["tier"],
        peer_host_id=document.get("peer_host_id") or "",
        free_s=document.get("free_s", 0.0),
    )


def candidates_to_json(candidates: Iterable[Candidate]) -> list[dict[str, object]]:
    return [
        {
            "host_id": str(candidate.host_id),
            "gpu_indices": list(candidate.gpu_indices),
            "estimate": estimate_to_json(candidate.estimate) if candidate.estimate else None,
            "reason": candidate.reason,
            "victims": [_victim_to_json(victim) for victim in candidate.victims],
        }
        for candidate in candidates
    ]


def candidates_from_json(documents: Iterable[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(
            host_id=HostId(document["host_id"]),
            estimate=_start_estimate(document["estimate"]) if document["estimate"] else None,
            reason=document["reason"],
            gpu_indices=tuple(document["gpu_indices"]),
            victims=tuple(_victim_from_json(victim) for victim in document.get("victims", [])),
        )
        for document in documents
    )


def _victim_to_json(victim: Victim) -> dict[str, object]:
    return {**asdict(victim), "action": str(victim.action), "to_gpu_indices": list(victim.to_gpu_indices)}


def _victim_from_json(document: Mapping[str, Any]) -> Victim:
    known = {**document, "action": VictimAction(document["action"])}
    return Victim(**{**known, "to_gpu_indices": tuple(document["to_gpu_indices"])})


def _start_estimate(document: Mapping[str, Any]) -> StartEstimate:
    return StartEstimate(**{**document, "tier": Tier(document["tier"])})


# A Temporal details field is for reading; a fleet of hundreds would not be read.
SHOWN_CANDIDATES = 30


def candidates_markdown(candidates: Sequence[Candidate], *, chosen: HostId | None) -> str:
    """A table of all hosts looked at, soonest first, in milliseconds."""
    if not candidates:
        return ""
    ordered = sorted(
        candidates,
        key=lambda row: (row.host_id != chosen, row.estimate.total_s if row.estimate else 1e12, row.host_id),
    )
    heads = ("from", "queue", "download", "load", "free", "attach", "control", "total ms", "verdict")
    lines = [
        "| host |" + "".join(_apart(head.replace(" ", "\u00a0")) + " |" for head in heads),
        "|---|---|--:|--:|--:|--:|--:|--:|--:|---|",
        *(_line(candidate, chosen=chosen) for candidate in ordered[:SHOWN_CANDIDATES]),
    ]
    if (hidden := len(ordered) - SHOWN_CANDIDATES) > 0:
        lines.append(f"| … {hidden} more | | | | | | | | | |")
    return "\n".join(lines)


def _line(candidate: Candidate, *, chosen: HostId | None) -> str:
    estimate = candidate.estimate
    if estimate is None:
        return f"| {candidate.host_id} | | | | | | | | | {candidate.reason} |"
    seconds = (
        estimate.queue_s,
        estimate.download_s,
        estimate.load_s,
        estimate.free_s,
        estimate.attach_s,
        estimate.control_s,
        estimate.total_s,
    )
    figures = " | ".join(f"{value * 1000:.0f}" for value in seconds)
    verdict = "**chosen**" if candidate.host_id == chosen else "possible"
    if candidate.victims:
        verdict += ": " + ", ".join(_fate(victim) for victim in candidate.victims)
    origin = f"{estimate.tier} {estimate.peer_host_id or ''}".rstrip()
    return f"| {candidate.host_id} |{_apart(origin)} | {figures} |{_apart(verdict)} |"


def _fate(victim: Victim) -> str:
    what = "ends" if victim.action is VictimAction.EVICT else f"moves to {victim.to_host}"
    return f"{victim.model_name} `{victim.instance_id}` {what}"


def _apart(text: str) -> str:
    """The Temporal UI draws tables without any room between columns; it keeps spaces that do not break."""
    return f"\u00a0\u00a0{text}"
