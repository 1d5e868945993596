"""What a start of one model takes on every host of a snapshot: `estimate_start(…).total_s`, as columns.

The same operations in the same order as `start_costs` does them for one host. Property tests hold all three
equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from firstlight.domain.estimator import (
    PRIOR_ATTACH_S,
    attach_key,
    edge_of,
    estimate_start,
    fetched_bytes,
)
from firstlight.domain.fleet import Edge, FleetSnapshot, Host, Model, Tier
from firstlight.domain.fleet_index import FleetIndex
from firstlight.domain.host_columns import Flags, Floats, Integers


class FleetCosts:
    """Costs of starting `model`; `givers` are the hosts it may be fetched from, as in `estimate_start`."""

    def __init__(
        self, model: Model, snapshot: FleetSnapshot, index: FleetIndex, givers: Sequence[Host]
    ) -> None:
        self._model = model
        self._snapshot = snapshot
        self._columns = index.columns
        self._givers = givers
        self._in_dram, self._on_ssd = _tiers(model, index)
        self._is_streamed: Flags = exceeds(model.size_bytes, self._columns.dram_capacity_bytes)

    def total_s(self) -> Floats:
        """By row of the index's columns. Raises: InvalidEstimate if one needs an edge without meaning."""
        in_dram, on_ssd, snapshot = self._in_dram, self._on_ssd, self._snapshot
        beside_s = self._learned_s(Tier.SSD)
        is_learned = beside_s == beside_s
        # Without learned figures the copy to the GPU counts as far as the bytes' way does not hide it.
        needs_copy = not bool(is_learned.all())
        copy_s = self._copy_s() if needs_copy else 0.0
        hidden_s = np.where(is_learned, 0.0, copy_s) if needs_copy else copy_s
        attach_s = np.where(is_learned, beside_s, PRIOR_ATTACH_S)
        is_far = ~(in_dram | on_ssd)
        way_s = self._from_afar_s(hidden_s) if is_far.any() else np.zeros_like(attach_s)
        if on_ssd.any():
            way_s = np.where(on_ssd, self._from_ssd_s(hidden_s), way_s)
        total_s = way_s + attach_s + snapshot.control_beside_bytes_s
        if in_dram.any():
            total_s = np.where(in_dram, self._from_dram_s() + snapshot.control_s, total_s)
        self._refuse_nonsense(is_far, is_learned)
        return total_s

    def _from_dram_s(self) -> Floats:
        learned_s = self._learned_s(Tier.DRAM)
        is_learned = learned_s == learned_s
        if is_learned.all():
            return learned_s
        return np.where(is_learned, learned_s, PRIOR_ATTACH_S + self._copy_s())

    def _from_ssd_s(self, copy_s: Floats | float) -> Floats:
        ssd = self._columns.edge(Edge.SSD_TO_DRAM)
        return ssd.queued_s() + np.maximum(ssd.crossing_s(self._model.size_bytes), copy_s)

    def _from_afar_s(self, copy_s: Floats | float) -> Floats:
        """The soonest of the source and all givers, with what of the copy each of them does not hide."""
        size_bytes = self._model.size_bytes
        source = self._columns.edge(Edge.REMOTE_TO_SSD)
        moving_s = source.crossing_s(fetched_bytes(self._model))
        load_queued_s: Floats | float = 0.0
        load_s: Floats | float = 0.0
        if self._is_streamed.any():
            ssd = self._columns.edge(Edge.SSD_TO_DRAM)
            load_queued_s = np.where(self._is_streamed, ssd.queued_s(), 0.0)
            load_s = np.where(self._is_streamed, ssd.crossing_s(size_bytes), 0.0)
        soonest_s = source.queued_s() + np.maximum(moving_s + load_s, copy_s)
        if self._givers:
            own = self._columns.edge(Edge.PEER_TO_DRAM)
            overhead_s = load_s + (own.overhead_s if size_bytes else 0.0)
            for giver_bandwidth, waiting_bytes in _best_givers(self._model, self._givers):
                bandwidth = np.minimum(own.bandwidth_bytes_per_s, giver_bandwidth)
                way_s = np.maximum(size_bytes / bandwidth + overhead_s, copy_s)
                way_s += np.maximum(own.queued_bytes, waiting_bytes) / bandwidth
                soonest_s = np.minimum(soonest_s, way_s)
        return soonest_s + load_queued_s

    def _learned_s(self, tier: Tier) -> Floats:
        """Learned seconds to attach, row by row; NaN where nothing was learned."""
        learned = self._model.attach_s
        by_class = [learned.get(attach_key(name, tier), np.nan) for name in self._columns.class_names]
        return np.array(by_class, dtype=np.float64)[self._columns.class_codes]

    def _copy_s(self) -> Floats:
        columns, model = self._columns, self._model
        copy = columns.edge(Edge.DRAM_TO_GPU)
        return np.where(columns.copies, copy.crossing_s(-(-model.size_bytes // model.gpu_count)), 0.0)

    def _refuse_nonsense(self, is_far: Flags, is_learned: Flags) -> None:
        """Hosts whose figures stand on an edge without meaning are estimated one by one, which says why."""
        edge = self._columns.edge
        suspects = ~edge(Edge.SSD_TO_DRAM).is_meaningful & (self._on_ssd | (is_far & self._is_streamed))
        suspects |= ~edge(Edge.REMOTE_TO_SSD).is_meaningful & is_far
        suspects |= ~edge(Edge.DRAM_TO_GPU).is_meaningful & self._columns.copies
        if self._givers:
            suspects |= ~edge(Edge.PEER_TO_DRAM).is_meaningful & is_far
        for row in np.flatnonzero(suspects):
            estimate_start(self._model, self._columns.hosts[row], self._snapshot, givers=self._givers)


def _tiers(model: Model, index: FleetIndex) -> tuple[Flags, Flags]:
    """Which rows have the checkpoint in DRAM, and which on SSD."""
    rows = index.columns.rows
    in_dram, on_ssd = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.bool_)
    for _, host, is_in_dram in index.holders_of(model.checkpoint_id):
        row = rows.get(host.host_id)
        if row is not None:
            (in_dram if is_in_dram else on_ssd)[row] = True
    return in_dram, on_ssd


def exceeds(size_bytes: int, capacity_bytes: Integers) -> Flags:
    """0: of unknown capacity."""
    return (capacity_bytes > 0) & (capacity_bytes < size_bytes)


def _best_givers(model: Model, givers: Sequence[Host]) -> list[tuple[float, int]]:
    """Bandwidth of each giver's disk (infinite: it gives from DRAM) and bytes that wait for its uplink.

    One that is no better than another in either is left out: nobody would fetch from it.
    """
    best: list[tuple[float, int]] = []
    for bandwidth, queued_bytes in sorted(
        ((_bandwidth_of_giver(model, host), host.uplink_queued_bytes) for host in givers),
        key=lambda giver: (-giver[0], giver[1]),
    ):
        if not best or queued_bytes < best[-1][1]:
            best.append((bandwidth, queued_bytes))
    return best


def _bandwidth_of_giver(model: Model, host: Host) -> float:
    if host.tiers[model.checkpoint_id] is Tier.DRAM:
        return float("inf")
    return edge_of(host, Edge.SSD_TO_DRAM).bandwidth_bytes_per_s
