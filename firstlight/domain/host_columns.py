"""What a start's seconds are made of, host by host, as columns: a decision adds them up for all at once.

A thousand hosts by one call each are most of what a decision would take. The columns are made once per
snapshot, in the order of `FleetIndex.ready`. An edge without meaning counts as one that is endlessly slow
here, and is remembered, so that whoever needs it can say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firstlight.domain.fleet import PRIORS, Edge, Host

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Open(NamedTuple):
    """A host that takes starts, and how many of its GPUs are free."""

    host: Host
    free: int


class EdgeColumns(NamedTuple):
    """One edge of every host: `queued_bytes` are promised on it; `is_meaningful` is False for nonsense."""

    overhead_s: Floats
    bandwidth_bytes_per_s: Floats
    queued_bytes: Floats
    is_meaningful: Flags

    def crossing_s(self, size_bytes: int) -> Floats:
        """Seconds on the edge, queue apart."""
        if not size_bytes:
            return np.zeros_like(self.overhead_s)
        return self.overhead_s + size_bytes / self.bandwidth_bytes_per_s

    def queued_s(self) -> Floats:
        return self.queued_bytes / self.bandwidth_bytes_per_s


class HostColumns:
    """`place` is the order of host ids; `class_names[class_codes[row]]` the row's class."""

    __slots__ = (
        "_edges",
        "class_codes",
        "class_names",
        "copies",
        "dram_capacity_bytes",
        "free_gpus",
        "gpus",
        "hosts",
        "place",
        "rows",
        "ssd_capacity_bytes",
    )

    def __init__(self, ready: Sequence[Open]) -> None:
        hosts = [host for host, _ in ready]
        self.hosts = hosts
        self.rows = {host.host_id: row for row, host in enumerate(hosts)}
        self.free_gpus = _integers([free for _, free in ready])
        self.gpus = _integers([len(host.gpus) for host in hosts])
        self.dram_capacity_bytes = _integers([host.dram_capacity_bytes for host in hosts])
        self.ssd_capacity_bytes = _integers([host.ssd_capacity_bytes for host in hosts])
        self.place = _places(list(self.rows))
        codes: dict[str, int] = {}
        self.class_codes = _integers([codes.setdefault(host.host_class, len(codes)) for host in hosts])
        self.class_names = list(codes)
        # Whether a start on the host copies anything to its GPUs at all.
        self.copies: Flags = np.array([Edge.DRAM_TO_GPU in host.edges for host in hosts], dtype=np.bool_)
        self._edges: dict[Edge, EdgeColumns] = {}

    def edge(self, edge: Edge) -> EdgeColumns:
        found = self._edges.get(edge)
        if found is None:
            found = self._edges[edge] = _edge_columns(self.hosts, edge)
        return found


def _edge_columns(hosts: Sequence[Host], edge: Edge) -> EdgeColumns:
    prior = PRIORS[edge]
    models = [host.edges.get(edge, prior) for host in hosts]
    overhead_s = np.array([model.overhead_s for model in models], dtype=np.float64)
    bandwidth = np.array([model.bandwidth_bytes_per_s for model in models], dtype=np.float64)
    is_meaningful = (bandwidth > 0) & ~(overhead_s < 0)
    return EdgeColumns(
        overhead_s,
        np.where(is_meaningful, bandwidth, 1.0),
        np.array([host.queued_bytes.get(edge, 0) for host in hosts], dtype=np.float64),
        is_meaningful,
    )


def _integers(values: Sequence[int]) -> Integers:
    return np.array(values, dtype=np.int64)


def _places(ids: list[str]) -> Integers:
    """Each id's place among all of them sorted."""
    place = np.empty(len(ids), dtype=np.int64)
    place[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return place
