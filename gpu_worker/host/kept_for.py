"""How long this host was told that its spares and skeletons are worth keeping, in monotonic seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFor:
    """One word of the fleet's. What it does not name is kept, and once it no longer counts, everything is."""

    skeletons_until_s: Mapping[str, float] = field(default_factory=dict)
    spares_until_s: float = inf
    counts_until_s: float = inf

    def has_spares(self, now_s: float) -> bool:
        return now_s < self.spares_until_s or now_s >= self.counts_until_s

    def has_skeleton(self, checkpoint_id: str, now_s: float) -> bool:
        return now_s < self.skeletons_until_s.get(checkpoint_id, inf) or now_s >= self.counts_until_s

    def spares_change_in_s(self, now_s: float) -> float | None:
        """When `has_spares` will say otherwise than now; None: never."""
        if now_s >= self.counts_until_s or self.spares_until_s >= self.counts_until_s:
            return None
        changes_s = self.spares_until_s if now_s < self.spares_until_s else self.counts_until_s
        return None if changes_s == inf else changes_s - now_s

    def but_wanted(self, checkpoint_id: str) -> KeptFor:
        """A start of this checkpoint comes, which whoever gave the word did not know of."""
        others = {name: until_s for name, until_s in self.skeletons_until_s.items() if name != checkpoint_id}
        return replace(self, skeletons_until_s=others, spares_until_s=inf)
