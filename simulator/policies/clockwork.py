"""Clockwork: a central controller that knows what each load takes, models in host memory, GPUs as a cache."""

from __future__ import annotations

from typing import ClassVar

from simulator.entities import Instance, Request
from simulator.policies.nearness import load_s
from simulator.policies.reclaiming import reclaim
from simulator.policy import Policy


class Clockwork(Policy):
    """Where the load ends soonest; what is on GPUs stays until others need them, least recently used first.

    It neither moves nor preempts, and begins nothing that would be late.
    """

    name: ClassVar[str] = "clockwork"
    reclaims_idle: ClassVar[bool] = True

    def place(self, request: Request) -> bool:
        able = []
        for index, host in enumerate(self.cluster.hosts):
            room = reclaim(host, request.model, lambda one: one.idle_since_s)
            if room is not None:
                able.append((load_s(self.cluster, request.model, host), len(room[1]), index, host, room))
        if not able:
            return False
        seconds, _, _, host, (gpus, victims) = min(able, key=lambda one: one[:3])
        deadline_s = request.arrival_s + self.cluster.scenario.timeout_s
        if request.first_token_s is None and self.cluster.now_s + seconds > deadline_s:
            return False
        for victim in victims:
            self.cluster.evict(victim)
        self.cluster.start(request.model, host, gpus, awaits=victims)
        return True

    def keep_alive_s(self, instance: Instance) -> float | None:
        return None
