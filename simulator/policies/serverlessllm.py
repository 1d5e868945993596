"""ServerlessLLM's scheduler as published (OSDI'24, section 5): the host with the least start-up time, where a
host whose GPUs are taken counts with the time to move one running instance away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.entities import Instance, ModelSpec, Request, SimHost
from simulator.policies.nearness import free_gpus, load_s
from simulator.policies.random import RandomPolicy


@dataclass(frozen=True, slots=True)
class Plan:
    """Start on `host`. With a victim: after it has made room, going to `to`."""

    seconds: float
    host: SimHost
    gpus: tuple[int, ...]
    victim: Instance | None = None
    to: SimHost | None = None
    to_gpus: tuple[int, ...] = ()


class ServerlessLlm(RandomPolicy):
    name: ClassVar[str] = "serverlessllm"

    def place(self, request: Request) -> bool:
        plans = [plan for host in self.cluster.hosts for plan in self.plans(request.model, host)]
        best = min(plans, key=lambda plan: plan.seconds, default=None)
        if best is None:
            return False
        if best.victim is None:
            self.cluster.start(request.model, best.host, best.gpus)
            return True
        assert best.to is not None
        self.cluster.move(best.victim, best.to, best.to_gpus)
        self.cluster.start(request.model, best.host, best.gpus, awaits=(best.victim,))
        return True

    def plans(self, model: ModelSpec, host: SimHost) -> list[Plan]:
        """On free GPUs if there are enough; else one plan per victim that has somewhere to go."""
        loading_s = load_s(self.cluster, model, host)
        gpus = free_gpus(host, model)
        if gpus is not None:
            return [Plan(loading_s, host, tuple(gpus))]
        plans: list[Plan] = []
        if not any(other.free_gpus() for other in self.cluster.hosts if other is not host):
            return plans
        for victim in self.victims(model, host):
            to = self.destination(victim)
            if to is not None:
                wanted = (*host.free_gpus(), *victim.gpus)[: model.gpus]
                plans.append(Plan(loading_s + self.move_s(victim, to[0]), host, wanted, victim, *to))
        return plans

    def victims(self, model: ModelSpec, host: SimHost) -> list[Instance]:
        """Single running instances whose GPUs, with those that are free, are enough."""
        free = len(host.free_gpus())
        running = {holder.instance_id: holder for holder in host.holders if holder is not None}
        return [
            one
            for one in running.values()
            if one.is_open and one.requests and free + len(one.gpus) >= model.gpus
            # Not for another instance of the same model: that gains nothing.
            if one.model is not model and not one.heirs
        ]

    def destination(self, victim: Instance) -> tuple[SimHost, tuple[int, ...]] | None:
        """The other host with free GPUs where the victim's model loads soonest."""
        able = [
            (load_s(self.cluster, victim.model, host), index, host, tuple(gpus))
            for index, host in enumerate(self.cluster.hosts)
            if host is not victim.host and (gpus := free_gpus(host, victim.model)) is not None
        ]
        best = min(able, key=lambda one: one[:2], default=None)
        return None if best is None else best[2:]

    def move_s(self, victim: Instance, to: SimHost) -> float:
        """Loading it there, then a·(t_in + t_out) + b."""
        move = self.cluster.scenario.migration
        tokens = sum(request.tokens_now(self.cluster.now_s) for request in victim.requests)
        resume_s = move.overhead_s * len(victim.requests) + move.seconds_per_token * tokens
        return load_s(self.cluster, victim.model, to) + resume_s
