"""What holds of every policy and scenario: same seed, same outcome; no GPU held twice, no request lost."""

from __future__ import annotations

from random import Random

import pytest
from simulator_scenes import run_checked, scene, stage

from simulator.policies.catalogue import POLICIES
from simulator.running import run
from simulator.scenario import Scenario
from simulator.workload import requests_of


def crowded(seed: int, **over: object) -> Scenario:
    """More requests than GPUs, of models of one and of two GPUs, in bursts."""
    random = Random(seed)
    kinds = [
        {
            "name": "small",
            "count": 4,
            "size_gb": 10.0,
            "prefill_tokens_per_s": 1000,
            "decode_tokens_per_s": 20,
        },
        {
            "name": "large",
            "count": 2,
            "size_gb": 60.0,
            "gpus": 2,
            "prefill_tokens_per_s": 300,
            "decode_tokens_per_s": 10,
        },
    ]
    return scene(
        **{
            "duration_s": 40.0,
            "timeout_s": 30.0,
            "max_concurrency": random.choice([1, 3]),
            "fleet__hosts": 3,
            "fleet__gpus_per_host": random.choice([2, 3]),
            "fleet__dram_pool_gb": random.choice([0, 50, 100]),
            "fleet__ssd_gb": 120,
            "fleet__ssd_copies": random.choice([0, 1, 3]),
            "fleet__noise": 0.1,
            "models": kinds,
            "arrivals": {
                "kind": "gamma",
                "cv": 4.0,
                "requests_per_s": 1.5,
                "of": random.choice(["fleet", "model"]),
            },
            "lengths": {"kind": "gsm8k"},
            **over,
        }
    )


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seed", range(4))
def test_no_gpu_is_held_twice_and_no_request_is_lost(policy: str, seed: int) -> None:
    scenario = crowded(seed)
    cluster = stage(scenario, policy)
    requests = requests_of(scenario, cluster.models, seed)
    cluster.submit(requests)
    run_checked(cluster)
    assert cluster.unfinished == 0 and not cluster.waiting
    for request in requests:
        # Each has ended in just one way, and was served for as many tokens as it asked for.
        assert (request.end_s is None) == request.has_timed_out
        if request.has_timed_out:
            assert request.first_token_s is None
            assert request.waited_s == pytest.approx(scenario.timeout_s)
            continue
        assert request.first_token_s is not None and request.end_s is not None
        assert request.first_token_s - request.arrival_s >= -1e-9
        least_s = (request.output_tokens - 1) / request.model.decode_tokens_per_s
        assert request.end_s - request.arrival_s >= least_s - 1e-6
    assert all(not instance.requests for instance in cluster.instances.values())
    computing = cluster.journal.used
    assert computing == 0, "what computes is counted as it computes"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_outcome_and_another_one_another(policy: str) -> None:
    scenario = crowded(1)
    assert run(scenario, policy, 5) == run(scenario, policy, 5)
    assert run(scenario, policy, 5).over_time != run(scenario, policy, 6).over_time


def test_every_policy_gets_the_same_requests() -> None:
    scenario = crowded(2)
    arrivals = {tuple(at for at, _ in run(scenario, policy, 3).over_time) for policy in POLICIES}
    assert len(arrivals) == 1


def test_only_shepherd_preempts_and_ours_moves_instead() -> None:
    busy = crowded(1, fleet__gpus_per_host=3, fleet__dram_pool_gb=200, fleet__ssd_copies=3, max_concurrency=1)
    outcomes = {policy: [run(busy, policy, seed) for seed in range(4)] for policy in POLICIES}
    assert {policy for policy, rows in outcomes.items() if any(one.preemptions for one in rows)} == {
        "shepherd"
    }
    movers = {policy for policy, rows in outcomes.items() if any(one.migrations for one in rows)}
    assert movers == {"serverlessllm", "firstlight"}
