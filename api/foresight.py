"""Which host a start will most likely be placed on, from the last picture of the fleet that was seen.

Reading the fleet anew takes milliseconds in which bytes could move already. The guess is the scheduler's own
answer to the last picture; it decides nothing. Where it was wrong it has cost a prefetch, and the decision
itself tells the right host.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from firstlight.domain.fleet import FleetSnapshot, Model, StartRequest
from firstlight.domain.names import CheckpointId, HostId
from firstlight.domain.scheduler import Place, decide

# An older picture says too little of which GPUs are free and where the bytes lie.
FRESH_FOR_S = 600.0
MODELS_AT_MOST = 1024


@dataclass(frozen=True, slots=True)
class Foreseen:
    host_id: HostId
    checkpoint_id: CheckpointId


class Foresight:
    """The last pictures, one a model, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, tuple[Model, FleetSnapshot]] = OrderedDict()

    def note(self, model: Model, snapshot: FleetSnapshot) -> None:
        """A decision was just made about `model` on `snapshot`."""
        self._seen[model.name] = (model, snapshot)
        self._seen.move_to_end(model.name)
        if len(self._seen) > MODELS_AT_MOST:
            self._seen.popitem(last=False)

    def guess(self, model: str, *, now_unix_s: float) -> Foreseen | None:
        """Where a start of `model` would go if the fleet were as it was; None if nothing recent is known."""
        seen = self._seen.get(model)
        if seen is None or now_unix_s - seen[1].taken_at_unix_s > FRESH_FOR_S:
            return None
        wanted, snapshot = seen
        decision = decide(StartRequest(wanted, may_wait=False), snapshot)
        return Foreseen(decision.host_id, wanted.checkpoint_id) if isinstance(decision, Place) else None
