"""The serverless default: any host that has GPUs free, whatever lies there."""

from __future__ import annotations

from typing import ClassVar

from simulator.entities import Instance, Request
from simulator.policies.nearness import free_gpus, load_s
from simulator.policy import Policy


class RandomPolicy(Policy):
    """Loads as fast as the others; only the choice is left to chance."""

    name: ClassVar[str] = "random"
    option_names: ClassVar[frozenset[str]] = frozenset({"keep_alive_s"})

    def place(self, request: Request) -> bool:
        model = request.model
        able = [host for host in self.cluster.hosts if free_gpus(host, model)]
        if not able:
            return False
        host = self.random.choice(able)
        gpus = free_gpus(host, model)
        assert gpus is not None
        self.cluster.start(model, host, gpus)
        return True

    def keep_alive_s(self, instance: Instance) -> float | None:
        """As long as loading took, as in ServerlessLLM's evaluation, or option `keep_alive_s`."""
        return self.options.get(
            "keep_alive_s", max(instance.load_s, load_s(self.cluster, instance.model, instance.host))
        )
