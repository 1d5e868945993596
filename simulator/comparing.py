"""Many runs at once: scenarios × policies × seeds, over a few processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context

from simulator.outcome import Outcome
from simulator.policies.catalogue import policy_named
from simulator.running import run
from simulator.scenario import Scenario
from simulator.summary import Key, Summary, figures_of, summarise
from simulator.workload import models_of, requests_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """`outcomes`: the first seed's, whole; of the others the figures only."""

    scenarios: tuple[Scenario, ...]
    summaries: dict[Key, Summary]
    outcomes: dict[Key, Outcome]


_Job = tuple[Scenario, str, int]


def compare(
    scenarios: Sequence[Scenario],
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    processes: int | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> Comparison:
    """Raises: InvalidInput for an unknown policy or a trace that cannot be read; nothing is played then."""
    for policy in policies:
        policy_named(policy)
    for scenario in scenarios:
        requests_of(scenario, models_of(scenario), seeds[0])
    jobs = [(scenario, policy, seed) for scenario in scenarios for policy in policies for seed in seeds]
    rows = []
    outcomes: dict[Key, Outcome] = {}
    for outcome in _run_all(jobs, processes or os.cpu_count() or 1):
        if outcome.seed == seeds[0]:
            outcomes[outcome.scenario, outcome.policy] = outcome
        rows.append((outcome.scenario, outcome.policy, outcome.seed, figures_of(outcome)))
        on_done()
    # Runs end in any order; tables and files have theirs.
    order = {(scenario.name, policy): None for scenario in scenarios for policy in policies}
    summaries = summarise(rows)
    return Comparison(
        tuple(scenarios), {key: summaries[key] for key in order}, {key: outcomes[key] for key in order}
    )


def _run_all(jobs: Sequence[_Job], processes: int) -> Iterator[Outcome]:
    if processes <= 1 or len(jobs) <= 1:
        yield from (run(*job) for job in jobs)
        return
    # Forked children would inherit whatever threads the caller has.
    context = get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context) as pool:
        for future in as_completed([pool.submit(run, *job) for job in jobs]):
            yield future.result()
