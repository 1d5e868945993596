"""What the Temporal UI shows of a start, in Markdown: predicted beside actual, phase by phase."""

from __future__ import annotations

from firstlight.contracts.starts import PhaseSeconds, PlannedEstimate, PlannedVictim

PHASES = ("queue_s", "download_s", "load_s", "free_s", "attach_s", "control_s", "total_s")


def compare(estimate: PlannedEstimate, actual: PhaseSeconds | None) -> str:
    """One row per phase; without `actual` only the prediction."""
    # The UI draws tables without any room between columns; it keeps spaces that do not break.
    heads = "".join(f"\u00a0\u00a0{head} |" for head in ("predicted\u00a0s", "actual\u00a0s", "off\u00a0by"))
    rows = [f"| phase |{heads}", "|---|--:|--:|--:|"]
    for name in PHASES:
        predicted_s = getattr(estimate, name)
        took_s = getattr(actual, name) if actual is not None else None
        rows.append(_row(name.removesuffix("_s"), predicted_s, took_s))
    tier = f" (took it from {actual.tier})" if actual is not None and actual.tier else ""
    return "\n".join([f"Predicted from **{estimate.tier}**{tier}", "", *rows])


def _row(name: str, predicted_s: float, took_s: float | None) -> str:
    if took_s is None:
        return f"| {name} | {predicted_s:.3f} | | |"
    return f"| {name} | {predicted_s:.3f} | {took_s:.3f} | {took_s - predicted_s:+.3f} |"


def fate(victim: PlannedVictim) -> str:
    """What becomes of an instance that gives way, as one clause."""
    what = "moves" if victim.is_moved else "ends, idle"
    where = victim.destination.host_id if victim.destination is not None else victim.to_host_id
    return f"{victim.instance_id} ({victim.model}) {what}" + (f" to {where}" if where else "")
