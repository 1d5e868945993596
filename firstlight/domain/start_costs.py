"""The estimator's total for one model on some hosts: the same figures, without an explanation of each.

`estimate_start` writes down every way the bytes could come; here only the seconds are computed, and what
hosts have in common once. Property tests hold the two equal. For all hosts at once see `fleet_costs`.
"""

from __future__ import annotations

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.estimator import (
    PRIOR_ATTACH_S,
    attach_key,
    copy_seconds,
    edge_of,
    fetched_bytes,
    lands_in_dram,
)
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Host, Model, Tier

_SSD_TO_DRAM = Edge.SSD_TO_DRAM
_REMOTE_TO_SSD = Edge.REMOTE_TO_SSD
_DRAM = Tier.DRAM
_SSD = Tier.SSD


class StartCosts:
    """Costs of starting `model`. What a host lacks comes from the source, as if no host gave it to others."""

    __slots__ = (
        "_bytes",
        "_checkpoint_id",
        "_control_s",
        "_fetched_bytes",
        "_learned_beside_s",
        "_learned_s",
        "_model",
    )

    def __init__(self, model: Model, snapshot: FleetSnapshot) -> None:
        self._model = model
        self._checkpoint_id = model.checkpoint_id
        self._bytes = model.size_bytes
        self._fetched_bytes = fetched_bytes(model)
        self._control_s = (snapshot.control_s, snapshot.control_beside_bytes_s)
        # Learned seconds to attach by host class, from DRAM and beside a load; None: nothing was learned yet.
        self._learned_s: dict[str, float | None] = {}
        self._learned_beside_s: dict[str, float | None] = {}

    def total_s(self, host: Host) -> float:
        """`estimate_start(…).total_s`. Raises: InvalidEstimate for a host whose edges have no meaning."""
        tier = host.tiers.get(self._checkpoint_id)
        if tier is _DRAM:
            return self.from_dram_s(host)
        host_class = host.host_class
        try:
            learned_s = self._learned_beside_s[host_class]
        except KeyError:
            learned_s = self._model.attach_s.get(attach_key(host_class, _SSD))
            self._learned_beside_s[host_class] = learned_s
        # Without learned figures the copy to the GPU counts as far as the bytes' way does not hide it.
        attach_s, copy_s = learned_s, 0.0
        if attach_s is None:
            attach_s, copy_s = PRIOR_ATTACH_S, copy_seconds(self._model, host)
        way_s = self._from_ssd_s(host, copy_s) if tier is _SSD else self._from_source_s(host, copy_s)
        return way_s + attach_s + self._control_s[1]

    def from_dram_s(self, host: Host) -> float:
        """What a start on the host takes once the checkpoint is in its DRAM."""
        host_class = host.host_class
        try:
            learned_s = self._learned_s[host_class]
        except KeyError:
            learned_s = self._model.attach_s.get(attach_key(host_class, _DRAM))
            self._learned_s[host_class] = learned_s
        if learned_s is None:
            learned_s = PRIOR_ATTACH_S + copy_seconds(self._model, host)
        return learned_s + self._control_s[0]

    def least_s(self, host_class: str) -> float:
        """What a start on a host of this class takes at least, wherever the checkpoint is."""
        learned = [self._model.attach_s.get(attach_key(host_class, tier)) for tier in (_DRAM, _SSD)]
        attach_s = min(PRIOR_ATTACH_S if seconds is None else seconds for seconds in learned)
        return attach_s + min(self._control_s)

    def hidden_s(self, host: Host, total_s: float) -> float:
        """How long a start that takes `total_s` can do without its GPUs: until all that is left is to attach.

        What does not fit the pool goes through it straight to the GPUs, so it cannot come ahead of them.
        """
        if not lands_in_dram(self._model, host):
            return 0.0
        return max(0.0, total_s - self.from_dram_s(host))

    def _from_ssd_s(self, host: Host, copy_s: float) -> float:
        queued_s, moving_s = _crossing(host, _SSD_TO_DRAM, self._bytes)
        return queued_s + max(moving_s, copy_s)

    def _from_source_s(self, host: Host, copy_s: float) -> float:
        queued_s, moving_s = _crossing(host, _REMOTE_TO_SSD, self._fetched_bytes)
        load_queued_s, load_s = 0.0, 0.0
        if 0 < host.dram_capacity_bytes < self._bytes:
            load_queued_s, load_s = _crossing(host, _SSD_TO_DRAM, self._bytes)
        return queued_s + max(moving_s + load_s, copy_s) + load_queued_s


def _crossing(host: Host, edge: Edge, size_bytes: int) -> tuple[float, float]:
    """Seconds in the edge's queue, and on it."""
    model = host.edges.get(edge) or _meaningful(host, edge)
    bandwidth = model.bandwidth_bytes_per_s
    if not bandwidth > 0 or model.overhead_s < 0:
        _meaningful(host, edge)
    queued_bytes = host.queued_bytes.get(edge, 0)
    moving_s = model.overhead_s + size_bytes / bandwidth if size_bytes else 0.0
    return queued_bytes / bandwidth, moving_s


def _meaningful(host: Host, edge: Edge) -> EdgeModel:
    model = edge_of(host, edge)
    if not model.bandwidth_bytes_per_s > 0 or model.overhead_s < 0:
        raise InvalidEstimate(f"{edge} of {host.host_id} has no meaning: {model}")
    return model
