"""Firstlight: the very functions of `firstlight.domain` that decide in production, over the simulated fleet.

Here is only what the API, the workflows and the database do around them: the picture of the fleet, what was
learned so far, and the carrying out of plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from random import Random
from typing import ClassVar

from firstlight.domain.autoscaling.scaling import ConcurrencyScaling, Demand, ScalingMemory
from firstlight.domain.fleet import Edge, StartRequest
from firstlight.domain.scheduler import Migrate, Place, VictimAction, Wait, decide
from simulator.cluster import Cluster
from simulator.entities import Instance, InstanceState, ModelSpec, Request, SimHost
from simulator.policies.firstlight_ahead import Ahead
from simulator.policies.firstlight_learning import Learning
from simulator.policies.firstlight_picture import Picture
from simulator.policy import Order, Policy

# As the API has it: looking again costs a transaction.
SOONEST_LOOK_S = 0.25
LATEST_LOOK_S = 30.0


class Firstlight(Policy):
    name: ClassVar[str] = "firstlight"
    streams_downloads: ClassVar[bool] = True
    reclaims_idle: ClassVar[bool] = True
    computes_while_loading: ClassVar[bool] = True
    # Those of `Ahead`.
    option_names: ClassVar[frozenset[str]] = frozenset(
        {
            "keep_alive_s",
            "adaptive_keep_alive",
            "prefetch",
            "prefetch_gb_per_pass",
            "horizon_s",
            "unknown_need",
            "dram_share",
        }
    )

    def __init__(self, *, random: Random, options: Mapping[str, float]) -> None:
        super().__init__(random=random, options=options)
        self._scaling = ConcurrencyScaling()
        self._memory: dict[str, ScalingMemory] = {}
        self._looks: set[str] = set()
        # Since when a model's start is put off for GPUs that are expected back.
        self._put_off_since_s: dict[str, float] = {}

    def bind(self, cluster: Cluster) -> None:
        super().bind(cluster)
        self._learning = Learning(cluster)
        self._ahead = Ahead(cluster, self._learning, self.options)
        self._picture = Picture(cluster, self._learning, self._ahead)
        self._ahead.begin(self._picture)

    def starts_wanted(self, model: ModelSpec) -> int:
        demand = self._demand(model)
        scaling = self._scaling.decide(demand, self._memory.get(model.name, ScalingMemory()))
        self._memory[model.name] = scaling.memory
        return scaling.change(demand)

    def place(self, request: Request) -> bool:
        now_s, deadline_s = self.cluster.now_s, None
        if request.first_token_s is None:
            deadline_s = max(0.0, request.arrival_s + self.cluster.scenario.timeout_s - now_s)
        model = self._learning.model(request.model)
        waited_s = now_s - self._put_off_since_s.get(request.model.name, now_s)
        wanted = StartRequest(model, deadline_s=deadline_s, may_wait=False, waited_s=waited_s)
        decision = decide(wanted, self._picture.snapshot())
        match decision:
            case Place() | Migrate():
                self._put_off_since_s.pop(request.model.name, None)
                self._carry_out(request.model, decision)
                return True
            case Wait(ready_in_s=ready_in_s):
                self._put_off_since_s.setdefault(request.model.name, now_s)
                self._look_later(request.model, ready_in_s or SOONEST_LOOK_S)
        return False

    def keep_alive_s(self, instance: Instance) -> float | None:
        return self._ahead.keep_alive_s(instance)

    def arrived(self, request: Request) -> None:
        self._ahead.arrived(request)

    def became_idle(self, instance: Instance) -> None:
        self._ahead.became_idle(instance)

    def became_ready(self, instance: Instance) -> None:
        self._learning.started(instance)

    def moved(self, source: Instance, *, tokens: int, seconds: float) -> None:
        self._learning.moved(source.model, tokens=tokens, seconds=seconds)

    def transferred(self, host: SimHost, edge: Edge, *, size_bytes: float, seconds: float) -> None:
        self._learning.transferred(host, edge, size_bytes=size_bytes, seconds=seconds)

    def prefetched(self, host: SimHost) -> None:
        self._ahead.prefetched(host)

    def dram_order(self, host: SimHost) -> Order | None:
        def order(names: Iterable[str]) -> Iterable[str]:
            return self._ahead.dram_order(host, names)

        return order

    def _demand(self, model: ModelSpec) -> Demand:
        own = self.cluster.by_model[model.name].values()
        ready = [one for one in own if one.state is InstanceState.READY and one.moves_to is None]
        return Demand(
            now_s=self.cluster.now_s,
            running=sum(len(one.requests) for one in own),
            waiting=self.cluster.waiting_for(model),
            ready=sum(one.moves_from is None for one in ready),
            starting=sum(one.state is InstanceState.LOADING and one.moves_from is None for one in own),
            max_concurrency=self.cluster.scenario.max_concurrency,
            max_instances=10**6,
        )

    def _carry_out(self, model: ModelSpec, plan: Place | Migrate) -> None:
        host = self._picture.host(plan.host_id)
        if isinstance(plan, Migrate):
            # Evictions stand before the moves that they make room for.
            for victim in plan.victims:
                instance = self.cluster.instances[victim.instance_id]
                if victim.action is VictimAction.EVICT or not instance.requests:
                    # One without requests has nothing that could go elsewhere.
                    self.cluster.evict(instance)
                elif victim.to_instance_id is not None:
                    to = self.cluster.instances[victim.to_instance_id]
                    self.cluster.move(instance, to.host, to.gpus, to=to)
                else:
                    assert victim.to_host is not None
                    there = self._picture.host(victim.to_host)
                    self.cluster.move(
                        instance,
                        there,
                        victim.to_gpu_indices,
                        awaits=_holders(there, victim.to_gpu_indices),
                    )
        peer = plan.estimate.peer_host_id
        self.cluster.start(
            model,
            host,
            plan.gpu_indices,
            awaits=_holders(host, plan.gpu_indices),
            peer=self._picture.host(peer) if peer is not None else None,
            predicted_s=plan.estimate.total_s,
        )

    def _look_later(self, model: ModelSpec, after_s: float) -> None:
        if model.name in self._looks:
            return
        self._looks.add(model.name)
        self.cluster.agenda.after(
            min(LATEST_LOOK_S, max(SOONEST_LOOK_S, after_s)), partial(self._look, model.name)
        )

    def _look(self, name: str) -> None:
        self._looks.discard(name)
        if name in self.cluster.waiting:
            self.cluster.place_waiting()


def _holders(host: SimHost, gpus: Iterable[int]) -> list[Instance]:
    """Whoever has to give these GPUs back first, each once."""
    found = {holder.instance_id: holder for index in gpus if (holder := host.holders[index]) is not None}
    return list(found.values())
