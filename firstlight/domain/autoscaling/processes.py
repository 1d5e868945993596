"""How long spare processes, and the skeletons of models in them, are still worth keeping.

The two lowest layers of warmth live in processes of GPU hosts, who know neither models' habits nor policies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from firstlight.domain.autoscaling.warmth import Layer
from firstlight.domain.names import CheckpointId


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessesKept:
    """Seconds from now. A checkpoint that is not named, and spares of None, are kept without an end."""

    skeletons_s: Mapping[CheckpointId, float]
    spares_s: float | None

    @property
    def is_said(self) -> bool:
        """Whether there is anything to tell a host."""
        return bool(self.skeletons_s) or self.spares_s is not None

    def of(self, checkpoints: Mapping[CheckpointId, object]) -> ProcessesKept:
        """What concerns a host that holds these."""
        held = {key: kept_s for key, kept_s in self.skeletons_s.items() if key in checkpoints}
        return ProcessesKept(skeletons_s=held, spares_s=self.spares_s)


def processes_kept(
    times_s: Mapping[str, Mapping[Layer, float]],
    *,
    idle_s: Mapping[str, float],
    checkpoints: Mapping[str, CheckpointId],
) -> ProcessesKept:
    """By model: its layers' times to live, how long it has been idle, and whose skeleton it has.

    A layer that several models share is kept for as long as any of them wants it.
    """
    skeletons: dict[CheckpointId, float] = {}
    for model, checkpoint_id in checkpoints.items():
        # One that nobody asked for yet says nothing, and what is not known to be cold is kept.
        left_s = _left_s(times_s, idle_s, model, Layer.ARCHITECTURE)
        skeletons[checkpoint_id] = max(left_s, skeletons.get(checkpoint_id, 0.0))
    spares_s = max((_left_s(times_s, idle_s, model, Layer.SPARE) for model in idle_s), default=float("inf"))
    return ProcessesKept(
        skeletons_s={key: kept_s for key, kept_s in skeletons.items() if isfinite(kept_s)},
        spares_s=spares_s if isfinite(spares_s) else None,
    )


def _left_s(
    times_s: Mapping[str, Mapping[Layer, float]], idle_s: Mapping[str, float], model: str, layer: Layer
) -> float:
    if model not in times_s or model not in idle_s:
        return float("inf")
    return max(0.0, times_s[model][layer] - idle_s[model])
