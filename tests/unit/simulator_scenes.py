"""Small scenarios whose results can be worked out by hand: round rates, no noise."""

from __future__ import annotations

from random import Random
from typing import Any

from simulator.cluster import Cluster
from simulator.entities import ModelSpec, Request
from simulator.policies.catalogue import policy_named
from simulator.scenario import Scenario
from simulator.workload import models_of

# 10 GB from SSD take 2 s, to the GPU 0.5 s; every start pays 0.1 s of control and 0.2 s to attach.
SSD_START_S = 2.3
DRAM_START_S = 0.8


# Any: fields of a scenario, as YAML would give them.
def scene(**over: Any) -> Scenario:
    body: dict[str, Any] = {
        "name": "scene",
        "title": "A scene",
        "duration_s": 60.0,
        "timeout_s": 300.0,
        "fleet": {
            "hosts": 1,
            "gpus_per_host": 1,
            "gpu_memory_gb": 48,
            "dram_pool_gb": 100,
            "ssd_gb": 1000,
            "ssd_copies": 4,
            "ssd_gb_per_s": 5.0,
            "gpu_gb_per_s": 20.0,
            "network_gb_per_s": 1.0,
            "attach_s": 0.2,
            "control_s": 0.1,
            "evict_s": 0.1,
            "noise": 0.0,
        },
        "models": [
            {
                "name": "m",
                "count": 2,
                "size_gb": 10.0,
                "prefill_tokens_per_s": 1000,
                "decode_tokens_per_s": 10,
            }
        ],
        "arrivals": {"kind": "gamma", "cv": 1.0, "requests_per_s": 0.5},
        "lengths": {"kind": "fixed", "prompt_tokens": 100, "output_tokens": 11},
        "loaders": {
            "fast": {"ssd_share": 1.0, "gpu_share": 1.0, "overhead_s": 0.0},
            "plain": {"ssd_share": 0.5, "gpu_share": 1.0, "overhead_s": 1.0},
            "pod": {"ssd_share": 0.5, "gpu_share": 1.0, "overhead_s": 5.0},
        },
        "migration": {"seconds_per_token": 0.001, "overhead_s": 0.1, "pause_s": 0.05},
    }
    for path, value in over.items():
        *parents, last = path.split("__")
        where: Any = body
        for parent in parents:
            where = where[int(parent)] if isinstance(where, list) else where[parent]
        where[last] = value
    return Scenario.model_validate(body)


def stage(scenario: Scenario, policy: str, **options: float) -> Cluster:
    """A cluster at time 0 with nothing asked of it yet."""
    kind = policy_named(policy)
    decider = kind(random=Random(1), options=options)
    return Cluster(scenario, models_of(scenario), decider, random=Random(2))


def ask(
    cluster: Cluster, *arrivals: tuple[float, int], prompt_tokens: int = 100, output_tokens: int = 11
) -> list[Request]:
    """Requests as (seconds, index of the model)."""
    requests = [
        Request(index, cluster.models[model], at_s, prompt_tokens, output_tokens)
        for index, (at_s, model) in enumerate(arrivals)
    ]
    cluster.submit(requests)
    return requests


def run_checked(cluster: Cluster) -> None:
    """Run, and hold the fleet to its laws after every event."""

    def is_over() -> bool:
        cluster.check()
        return cluster.unfinished == 0

    cluster.agenda.run(is_over=is_over)


def put_in_dram(cluster: Cluster, host: int, model: ModelSpec) -> None:
    cluster.hosts[host].dram.add(model.name, model.size_bytes)
    cluster.hosts[host].refresh(model.name)
