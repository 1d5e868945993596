"""Shepherd as ServerlessLLM's authors compared it: the same eye for locality, but it preempts."""

from __future__ import annotations

from typing import ClassVar

from simulator.entities import Instance, ModelSpec, Request, SimHost
from simulator.policies.serverlessllm import ServerlessLlm


class Shepherd(ServerlessLlm):
    """A victim stops at once, so a host whose GPUs are taken costs no more than a free one.

    It must have somewhere to go, and what was preempted once is not preempted again, nor preempts: otherwise
    two models could drive each other out for ever.
    """

    name: ClassVar[str] = "shepherd"

    def place(self, request: Request) -> bool:
        may_preempt = request.preemptions == 0
        plans = [
            plan
            for host in self.cluster.hosts
            for plan in self.plans(request.model, host)
            if may_preempt or plan.victim is None
        ]
        best = min(plans, key=lambda plan: (plan.seconds, plan.victim is not None), default=None)
        if best is None:
            return False
        if best.victim is not None:
            self.cluster.preempt(best.victim)
        self.cluster.start(request.model, best.host, best.gpus)
        return True

    def victims(self, model: ModelSpec, host: SimHost) -> list[Instance]:
        return [
            one
            for one in super().victims(model, host)
            if all(request.preemptions == 0 for request in one.requests)
        ]

    def move_s(self, victim: Instance, to: SimHost) -> float:
        """It does not wait for its victim."""
        return 0.0
