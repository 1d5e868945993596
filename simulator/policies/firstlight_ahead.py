"""What Firstlight does before anybody asks: keep-alive, prefetch, eviction, by each model's own history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from firstlight.domain.autoscaling.arrivals import ArrivalHistory
from firstlight.domain.autoscaling.eviction import Resident, eviction_order
from firstlight.domain.autoscaling.keep_alive import (
    FixedKeepAlive,
    HybridHistogram,
    KeepAlivePolicy,
    ModelLife,
)
from firstlight.domain.autoscaling.prefetch import Likely, PrefetchBudget, plan_prefetch
from firstlight.domain.fleet import Tier
from firstlight.domain.names import CheckpointId
from simulator.cluster import Cluster
from simulator.entities import Instance, ModelSpec, Request, SimHost
from simulator.policies.firstlight_learning import Learning

if TYPE_CHECKING:
    from simulator.policies.firstlight_picture import Picture

# A deployed model's keep-alive time by default.
FIXED_KEEP_ALIVE_S = 300.0
# FIRSTLIGHT_RECONCILE_EVERY_S of a fleet that prefetches; docs/operators/simulating.md has all settings.
PASS_EVERY_S = 10.0


class Ahead:
    """Options: `keep_alive_s`, `adaptive_keep_alive` (0: that time always), `prefetch` (0: none),
    `prefetch_gb_per_pass`, `horizon_s`, `unknown_need`, `dram_share`.
    """

    def __init__(self, cluster: Cluster, learning: Learning, options: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._learning = learning
        self._options = options
        is_fixed = options.get("adaptive_keep_alive", 1.0) == 0.0
        self._keep_alive: KeepAlivePolicy = FixedKeepAlive() if is_fixed else HybridHistogram()
        self._histories = {model.name: ArrivalHistory() for model in cluster.models}
        self._active_since_s: dict[str, float] = {}
        self._by_name = {model.name: model for model in cluster.models}
        self._sizes = {CheckpointId(model.name): model.size_bytes for model in cluster.models}
        # Prefetches that wait for their host's disk, in the order of what they save.
        self._wanted: dict[str, list[ModelSpec]] = {host.host_id: [] for host in cluster.hosts}

    def begin(self, picture: Picture) -> None:
        self._picture = picture
        if self._options.get("prefetch", 1.0):
            self._cluster.agenda.after(0.0, self._pass)

    def arrived(self, request: Request) -> None:
        self._active_since_s.setdefault(request.model.name, self._cluster.now_s)

    def became_idle(self, instance: Instance) -> None:
        """A spell of activity ends when nothing of the model runs or waits."""
        name = instance.model.name
        if (
            any(one.requests for one in self._cluster.by_model[name].values())
            or name in self._cluster.waiting
        ):
            return
        from_s = self._active_since_s.pop(name, None)
        if from_s is not None:
            history = self._histories[name]
            self._histories[name] = history.with_activity(from_s=from_s, until_s=self._cluster.now_s)

    def keep_alive_s(self, instance: Instance) -> float | None:
        life = ModelLife(
            history=self._histories[instance.model.name],
            fixed_keep_alive_s=self._options.get("keep_alive_s", FIXED_KEEP_ALIVE_S),
            start_s=instance.load_s,
        )
        return self._keep_alive.window(life).release_s

    def expected_idle_for_s(self, instance: Instance) -> float | None:
        history = self._histories[instance.model.name]
        return history.expected_idle_for_s(idle_s=self._idle_s(instance.model.name))

    def dram_order(self, host: SimHost, names: Iterable[str]) -> list[str]:
        """Least to lose by the byte first: what bringing it back takes, times how likely it is wanted."""
        residents = []
        for age, name in enumerate(names):
            model = self._by_name[name]
            rate = host.ssd_link.bytes_per_s if name in host.ssd else host.down_link.bytes_per_s
            residents.append(
                Resident(
                    key=name,
                    size_bytes=model.size_bytes,
                    bring_back_s=model.size_bytes / rate,
                    need=self._need(name),
                    last_used_s=float(age),
                )
            )
        return [one.key for one in eviction_order(residents)]

    def prefetched(self, host: SimHost) -> None:
        self._next(host)

    def _idle_s(self, name: str) -> float:
        if name in self._active_since_s:
            return 0.0
        return self._histories[name].idle_s(self._cluster.now_s) or 0.0

    def _need(self, name: str) -> float | None:
        """P(a start is wanted before the pass after next)."""
        horizon_s = self._options.get("horizon_s", 600.0)
        return self._histories[name].need_within(horizon_s, idle_s=self._idle_s(name))

    def _pass(self) -> None:
        likely = [
            Likely(
                self._learning.model(model), self._options.get("unknown_need", 0.5) if need is None else need
            )
            for model in self._cluster.models
            for need in (self._need(model.name),)
        ]
        budget = PrefetchBudget(
            bytes_per_pass=int(self._options.get("prefetch_gb_per_pass", 200.0) * 1e9),
            dram_share=self._options.get("dram_share", 0.9),
            dram_copies_at_most=len(self._cluster.hosts),
        )
        plan = plan_prefetch(likely, self._picture.snapshot(), budget, sizes=self._sizes)
        for wanted in self._wanted.values():
            wanted.clear()
        for one in plan:
            if one.tier is Tier.DRAM:
                self._wanted[one.host_id].append(self._by_name[one.model.name])
        for host in self._cluster.hosts:
            self._next(host)
        self._cluster.agenda.after(PASS_EVERY_S, self._pass)

    def _next(self, host: SimHost) -> None:
        wanted = self._wanted[host.host_id]
        while wanted and not host.background:
            if self._cluster.transfers.prefetch(wanted.pop(0), host):
                return
