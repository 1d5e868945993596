"""The estimator's total for one model on many hosts: the same figures, without an explanation of each.

`estimate_start` writes down every way the bytes could come. Over a thousand hosts that is most of what a
decision would take; here only the seconds are computed, and what hosts have in common once. A property test
holds the two equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.estimator import (
    PRIOR_ATTACH_S,
    attach_key,
    control_seconds,
    copy_seconds,
    edge_of,
    fetched_bytes,
    lands_in_dram,
)
from firstlight.domain.fleet import Edge, EdgeModel, FleetSnapshot, Host, Model, Tier

_SSD_TO_DRAM = Edge.SSD_TO_DRAM
_PEER_TO_DRAM = Edge.PEER_TO_DRAM
_REMOTE_TO_SSD = Edge.REMOTE_TO_SSD
_DRAM = Tier.DRAM
_SSD = Tier.SSD


class StartCosts:
    """Costs of starting `model`; `givers` are the hosts it may be fetched from, as in `estimate_start`."""

    __slots__ = ("_attach_s", "_bytes", "_checkpoint_id", "_control_s", "_fetched_bytes", "_givers", "_model")

    def __init__(self, model: Model, snapshot: FleetSnapshot, givers: Sequence[Host] = ()) -> None:
        self._model = model
        self._checkpoint_id = model.checkpoint_id
        self._bytes = model.size_bytes
        self._fetched_bytes = fetched_bytes(model)
        # Bandwidth of the giver's disk (infinite where it gives from DRAM), and what waits for its uplink.
        self._givers = [(_bandwidth_of_giver(model, host), host.uplink_queued_bytes) for host in givers]
        self._control_s = {near: control_seconds(snapshot, _DRAM if near else _SSD) for near in (True, False)}
        # What was learned, by host class and whether the bytes are in DRAM already; None: nothing yet.
        self._attach_s: dict[tuple[str, bool], float | None] = {}

    def total_s(self, host: Host) -> float:
        """`estimate_start(…).total_s`. Raises: InvalidEstimate for a host whose edges have no meaning."""
        tier = host.tiers.get(self._checkpoint_id)
        if tier is _DRAM:
            return self._from_dram_s(host)
        learned_s = self._learned_s(host.host_class, False)
        # Without learned figures the copy to the GPU counts as far as the bytes' way does not hide it.
        copy_s = 0.0 if learned_s is not None else copy_seconds(self._model, host)
        if tier is _SSD:
            queued_s, moving_s = self._crossing(host, _SSD_TO_DRAM, self._bytes)
            way_s = queued_s + max(moving_s, copy_s)
        else:
            way_s = self._from_afar_s(host, copy_s)
        return way_s + (PRIOR_ATTACH_S if learned_s is None else learned_s) + self._control_s[False]

    def hidden_s(self, host: Host, total_s: float) -> float:
        """How long a start that takes `total_s` can do without its GPUs: until all that is left is to attach.

        What does not fit the pool goes through it straight to the GPUs, so it cannot come ahead of them.
        """
        if not lands_in_dram(self._model, host):
            return 0.0
        return max(0.0, total_s - self._from_dram_s(host))

    def _from_dram_s(self, host: Host) -> float:
        learned_s = self._learned_s(host.host_class, True)
        if learned_s is None:
            learned_s = PRIOR_ATTACH_S + copy_seconds(self._model, host)
        return learned_s + self._control_s[True]

    def _learned_s(self, host_class: str, is_in_dram: bool) -> float | None:
        key = (host_class, is_in_dram)
        if key not in self._attach_s:
            tier = _DRAM if is_in_dram else _SSD
            self._attach_s[key] = self._model.attach_s.get(attach_key(host_class, tier))
        return self._attach_s[key]

    def _from_afar_s(self, host: Host, copy_s: float) -> float:
        """The soonest of the source and all givers, with what of the copy each of them does not hide."""
        load_queued_s, load_s = 0.0, 0.0
        if not lands_in_dram(self._model, host):
            load_queued_s, load_s = self._crossing(host, _SSD_TO_DRAM, self._bytes)
        queued_s, moving_s = self._crossing(host, _REMOTE_TO_SSD, self._fetched_bytes)
        soonest_s = queued_s + max(moving_s + load_s, copy_s)
        if self._givers:
            edge = _meaningful(host, _PEER_TO_DRAM)
            overhead_s = load_s + (edge.overhead_s if self._bytes else 0.0)
            own_queued_bytes = host.queued_bytes.get(_PEER_TO_DRAM, 0)
            for bandwidth, queued_bytes in self._givers:
                if edge.bandwidth_bytes_per_s < bandwidth:
                    bandwidth = edge.bandwidth_bytes_per_s
                if own_queued_bytes > queued_bytes:
                    queued_bytes = own_queued_bytes
                way_s = self._bytes / bandwidth + overhead_s
                if way_s < copy_s:
                    way_s = copy_s
                way_s += queued_bytes / bandwidth
                if way_s < soonest_s:
                    soonest_s = way_s
        return soonest_s + load_queued_s

    @staticmethod
    def _crossing(host: Host, edge: Edge, size_bytes: int) -> tuple[float, float]:
        """Seconds in the edge's queue, and on it."""
        model = _meaningful(host, edge)
        bandwidth = model.bandwidth_bytes_per_s
        moving_s = model.overhead_s + size_bytes / bandwidth if size_bytes else 0.0
        return host.queued_bytes.get(edge, 0) / bandwidth, moving_s


def _meaningful(host: Host, edge: Edge) -> EdgeModel:
    model = edge_of(host, edge)
    if not model.bandwidth_bytes_per_s > 0 or model.overhead_s < 0:
        raise InvalidEstimate(f"{edge} of {host.host_id} has no meaning: {model}")
    return model


def _bandwidth_of_giver(model: Model, host: Host) -> float:
    if host.tiers[model.checkpoint_id] is _DRAM:
        return float("inf")
    return edge_of(host, _SSD_TO_DRAM).bandwidth_bytes_per_s
