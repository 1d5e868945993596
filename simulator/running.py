"""One run: a scenario, a policy and a seed in, an outcome out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from simulator.cluster import Cluster
from simulator.entities import ModelSpec, Request
from simulator.outcome import Outcome, outcome_of
from simulator.policies.catalogue import policy_named
from simulator.scenario import Scenario
from simulator.workload import models_of, requests_of


def run(scenario: Scenario, policy: str, seed: int) -> Outcome:
    """Deterministic: the same three give the same outcome. Raises: InvalidInput for what is unknown."""
    models = models_of(scenario)
    requests = requests_of(scenario, models, seed)
    return outcome_of(play(scenario, policy, models, requests, seed), requests, seed)


def play(
    scenario: Scenario,
    policy: str,
    models: Sequence[ModelSpec],
    requests: Sequence[Request],
    seed: int,
    *,
    dram_dropped_at_s: float | None = None,
) -> Cluster:
    """Have these very requests, which are changed, run to their end. Returns the fleet as it is then.

    `dram_dropped_at_s`: a moment of quiet in which all that DRAM holds is dropped.
    """
    kind = policy_named(policy)
    options = scenario.policies.get(policy, {})
    decider = kind(random=Random(f"{seed}/policy"), options=options)
    cluster = Cluster(scenario, models, decider, random=Random(f"{seed}/noise"))
    cluster.submit(requests)
    if dram_dropped_at_s is not None:
        cluster.agenda.at(dram_dropped_at_s, cluster.drop_from_dram)
    cluster.run()
    cluster.check()
    return cluster
