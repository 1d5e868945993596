"""Outcomes of several seeds as one line per scenario and policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from firstlight.domain.fleet import Tier
from simulator.outcome import Outcome, quantile
from simulator.statistics import Interval, interval

QUANTILES = (0.50, 0.95, 0.99)
LATENCIES = tuple(f"{what}_p{round(share * 100)}_s" for what in ("startup", "ttft") for share in QUANTILES)


def figures_of(outcome: Outcome) -> dict[str, float]:
    """Every figure of one run, by its name in tables, CSV and JSON."""
    return {
        **{f"startup_p{round(q * 100)}_s": quantile(outcome.startup_s, q) for q in QUANTILES},
        "startup_mean_s": sum(outcome.startup_s) / max(1, len(outcome.startup_s)),
        **{f"ttft_p{round(q * 100)}_s": quantile(outcome.ttft_s, q) for q in QUANTILES},
        "inside_share": outcome.inside_share,
        "warm_share": outcome.warm_share,
        "requests": float(outcome.requests),
        "timed_out": float(outcome.timed_out),
        **{f"starts_{tier.value}": float(outcome.starts.get(tier.value, 0)) for tier in Tier},
        "migrations": float(outcome.migrations),
        "preemptions": float(outcome.preemptions),
        "preempted_tokens": float(outcome.preempted_tokens),
        "evictions": float(outcome.evictions),
        "gpu_used_share": outcome.used_share,
        "gpu_held_share": outcome.held_share,
        "estimate_error_p50_s": quantile(sorted(outcome.estimate_errors_s), 0.5),
    }


@dataclass(frozen=True, slots=True)
class Summary:
    scenario: str
    policy: str
    # By seed, in order of seeds.
    runs: tuple[Mapping[str, float], ...]

    def interval(self, figure: str) -> Interval:
        return interval([run[figure] for run in self.runs])

    def as_json(self) -> dict[str, object]:
        figures = {figure: self.interval(figure) for figure in self.runs[0]}
        return {
            "scenario": self.scenario,
            "policy": self.policy,
            "seeds": len(self.runs),
            "figures": {name: {"mean": one.mean, "half_width_95": one.half} for name, one in figures.items()},
        }

    def mean(self, figure: str) -> float:
        return self.interval(figure).mean


Key = tuple[str, str]


def summarise(rows: Iterable[tuple[str, str, int, Mapping[str, float]]]) -> dict[Key, Summary]:
    """(scenario, policy, seed, figures) in any order; seeds are sorted."""
    found: dict[Key, list[tuple[int, Mapping[str, float]]]] = {}
    for scenario, policy, seed, figures in rows:
        found.setdefault((scenario, policy), []).append((seed, figures))
    return {
        key: Summary(*key, tuple(figures for _, figures in sorted(runs, key=lambda run: run[0])))
        for key, runs in found.items()
    }


def scenarios_of(summaries: Mapping[Key, Summary]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(scenario for scenario, _ in summaries))


def policies_of(summaries: Mapping[Key, Summary]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(policy for _, policy in summaries))
