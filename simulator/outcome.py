"""What one run comes to, in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from firstlight.domain.fleet import Tier
from simulator.cluster import Cluster
from simulator.entities import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One scenario under one policy with one seed.

    `startup_s`: seconds that each request was without an instance, preemptions included; `ttft_s`: arrival to
    first token. A request that gave up counts in both with the time it had waited, which is the time-out.
    """

    scenario: str
    policy: str
    seed: int
    requests: int
    startup_s: tuple[float, ...]
    ttft_s: tuple[float, ...]
    # (arrival, start-up seconds) of every request, in order of arrival.
    over_time: tuple[tuple[float, float], ...]
    inside_share: float
    timed_out: int
    warm_share: float
    starts: dict[str, int] = field(default_factory=dict)
    migrations: int = 0
    preemptions: int = 0
    evictions: int = 0
    preempted_tokens: int = 0
    held_share: float = 0.0
    used_share: float = 0.0
    ended_s: float = 0.0
    gpus: int = 0
    # |predicted − actual| of starts, seconds.
    estimate_errors_s: tuple[float, ...] = ()
    gpu_use: tuple[tuple[float, int, int], ...] = ()


def outcome_of(cluster: Cluster, requests: Sequence[Request], seed: int) -> Outcome:
    journal, now_s = cluster.journal, cluster.now_s
    timeout_s = cluster.scenario.timeout_s
    startup_s = [request.waited_s for request in requests]
    ttft_s = [
        timeout_s if request.first_token_s is None else request.first_token_s - request.arrival_s
        for request in requests
    ]
    count = max(1, len(requests))
    return Outcome(
        scenario=cluster.scenario.name,
        policy=cluster.policy.name,
        seed=seed,
        requests=len(requests),
        startup_s=tuple(sorted(startup_s)),
        ttft_s=tuple(sorted(ttft_s)),
        over_time=tuple((request.arrival_s, request.waited_s) for request in requests),
        inside_share=sum(
            not request.has_timed_out and ttft <= timeout_s
            for request, ttft in zip(requests, ttft_s, strict=True)
        )
        / count,
        timed_out=sum(request.has_timed_out for request in requests),
        warm_share=sum(request.waited_s == 0 for request in requests) / count,
        starts={tier.value: journal.starts[tier] for tier in Tier},
        migrations=journal.migrations,
        preemptions=journal.preemptions,
        evictions=journal.evictions,
        preempted_tokens=journal.preempted_tokens,
        held_share=journal.held_gpu_s / (journal.gpus * now_s) if now_s else 0.0,
        used_share=journal.used_gpu_s / (journal.gpus * now_s) if now_s else 0.0,
        ended_s=now_s,
        gpus=journal.gpus,
        estimate_errors_s=tuple(abs(predicted - actual) for predicted, actual in journal.estimates),
        gpu_use=tuple(journal.use),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank of values in ascending order; 0 without any."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered), max(1, math.ceil(share * len(ordered)))) - 1]
