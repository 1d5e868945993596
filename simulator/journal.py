"""What a run leaves behind besides its requests: counts, and how many GPUs were held and used when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from firstlight.domain.fleet import Tier
from simulator.entities import Instance


@dataclass(slots=True)
class Journal:
    gpus: int
    held: int = 0
    used: int = 0
    held_gpu_s: float = 0.0
    used_gpu_s: float = 0.0
    migrations: int = 0
    evictions: int = 0
    preemptions: int = 0
    # Tokens whose cache was thrown away and had to be computed again.
    preempted_tokens: int = 0
    starts: Counter[Tier] = field(default_factory=Counter)
    # (predicted, actual) seconds of starts that somebody predicted.
    estimates: list[tuple[float, float]] = field(default_factory=list)
    # (time, held, used) at every change.
    use: list[tuple[float, int, int]] = field(default_factory=list)
    _at_s: float = 0.0

    def holding(self, now_s: float, change: int) -> None:
        self._pass(now_s)
        self.held += change
        assert 0 <= self.held <= self.gpus, "more GPUs are held than there are"
        self.use.append((now_s, self.held, self.used))

    def computing(self, now_s: float, change: int) -> None:
        self._pass(now_s)
        self.used += change
        assert 0 <= self.used <= self.gpus, "more GPUs compute than there are"
        self.use.append((now_s, self.held, self.used))

    def started(self, tier: Tier) -> None:
        self.starts[tier] += 1

    def ready(self, instance: Instance, now_s: float) -> None:
        if instance.predicted_s is not None:
            self.estimates.append((instance.predicted_s, now_s - instance.began_s))

    def preempted(self, tokens: int) -> None:
        self.preemptions += 1
        self.preempted_tokens += tokens

    def _pass(self, now_s: float) -> None:
        elapsed_s = now_s - self._at_s
        self.held_gpu_s += self.held * elapsed_s
        self.used_gpu_s += self.used * elapsed_s
        self._at_s = now_s
