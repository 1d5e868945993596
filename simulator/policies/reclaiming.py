"""For policies that let idle instances stand until their GPUs are wanted."""

from __future__ import annotations

from collections.abc import Callable

from simulator.entities import Instance, ModelSpec, SimHost
from simulator.policies.nearness import free_gpus

Worth = Callable[[Instance], float]


def reclaim(host: SimHost, model: ModelSpec, worth: Worth) -> tuple[list[int], list[Instance]] | None:
    """GPUs for `model` on `host`, and which idle instances go for them, the least worth first."""
    if (gpus := free_gpus(host, model)) is not None:
        return gpus, []
    found = host.free_gpus()
    idle = {holder.instance_id: holder for holder in host.holders if holder is not None and holder.is_idle}
    victims = []
    for one in sorted(idle.values(), key=worth):
        victims.append(one)
        found.extend(one.gpus)
        if len(found) >= model.gpus:
            return found[: model.gpus], victims
    return None
