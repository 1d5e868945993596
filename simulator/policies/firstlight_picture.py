"""The simulated fleet as the scheduler sees it: the snapshot that production reads from its database."""

from __future__ import annotations

from typing import cast

from firstlight.domain.fleet import Edge, FleetSnapshot, Gpu, Host, Running, StartUnderWay, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName
from simulator.cluster import Cluster
from simulator.entities import Instance, InstanceState, SimHost
from simulator.policies.firstlight_ahead import Ahead
from simulator.policies.firstlight_learning import HOST_CLASS, Learning


class Picture:
    def __init__(self, cluster: Cluster, learning: Learning, ahead: Ahead) -> None:
        self._cluster = cluster
        self._learning = learning
        self._ahead = ahead
        self._hosts = {host.host_id: host for host in cluster.hosts}

    def host(self, host_id: str) -> SimHost:
        return self._hosts[host_id]

    def snapshot(self) -> FleetSnapshot:
        now_s = self._cluster.now_s
        instances = self._cluster.instances.values()
        return FleetSnapshot(
            taken_at_unix_s=now_s,
            hosts=tuple(self._host(host) for host in self._cluster.hosts),
            starts=tuple(
                self._start(one, now_s)
                for one in instances
                if one.state is InstanceState.LOADING and one.moves_from is None
            ),
            control_s=self._learning.control_s,
            control_beside_bytes_s=self._learning.control_s,
            running=tuple(self._running(one, now_s) for one in instances if one.is_open and not one.heirs),
            moves=self._learning.moves,
            evict_s=self._cluster.scenario.fleet.evict_s,
        )

    def _host(self, host: SimHost) -> Host:
        now_s = self._cluster.now_s
        ssd_bytes = host.ssd_link.queued_bytes(now_s)
        down_bytes = host.down_link.queued_bytes(now_s)
        queued = {
            Edge.SSD_TO_DRAM: ssd_bytes,
            Edge.REMOTE_TO_SSD: down_bytes,
            Edge.PEER_TO_DRAM: down_bytes,
        }
        return Host(
            host_id=HostId(host.host_id),
            host_class=HOST_CLASS,
            state=HostState.READY,
            gpus=tuple(self._gpu(host, index, holder, now_s) for index, holder in enumerate(host.holders)),
            edges=self._learning.edges[host.host_id],
            # The same strings by another name.
            tiers=cast("dict[CheckpointId, Tier]", host.tiers),
            queued_bytes=queued if ssd_bytes or down_bytes else {},
            dram_capacity_bytes=host.dram.capacity_bytes,
            ssd_capacity_bytes=host.ssd.capacity_bytes,
            peer_endpoint=host.host_id,
            uplink_queued_bytes=host.up_link.queued_bytes(now_s),
        )

    def _gpu(self, host: SimHost, index: int, holder: Instance | None, now_s: float) -> Gpu:
        if holder is None:
            return Gpu(index, host.gpu_memory_bytes)
        free_in_s, is_given_up = None, False
        if not holder.heirs:
            if holder.state is InstanceState.DRAINING:
                free_in_s = self._cluster.scenario.fleet.evict_s
            elif holder.expiry is not None:
                free_in_s = holder.expiry.at_s - now_s
            is_given_up = holder.state is InstanceState.DRAINING
        return Gpu(index, host.gpu_memory_bytes, InstanceId(holder.instance_id), free_in_s, is_given_up)

    def _running(self, one: Instance, now_s: float) -> Running:
        return Running(
            instance_id=InstanceId(one.instance_id),
            model=self._learning.model(one.model),
            host_id=HostId(one.host.host_id),
            gpu_indices=one.gpus,
            requests=len(one.requests),
            tokens=sum(request.tokens_now(now_s) for request in one.requests),
            idle_s=None if one.requests else now_s - one.idle_since_s,
            is_movable=True,
            expected_idle_for_s=None if one.requests else self._ahead.expected_idle_for_s(one),
        )

    @staticmethod
    def _start(one: Instance, now_s: float) -> StartUnderWay:
        left_s = (one.predicted_s or 0.0) - (now_s - one.began_s)
        return StartUnderWay(
            InstanceId(one.instance_id), ModelName(one.model.name), HostId(one.host.host_id), max(0.0, left_s)
        )
