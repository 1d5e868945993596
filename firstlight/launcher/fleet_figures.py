"""The fleet as Postgres knows it, for Prometheus. Every control worker tells the same: take the maximum."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from firstlight.database.connection import Database
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import list_instances
from firstlight.database.records import HostRecord, InstanceRecord
from firstlight.domain.errors import FirstlightError
from firstlight.domain.lifecycle import HostState, InstanceState

ANSWERS_WITHIN_S = 3.0
LIVE = (InstanceState.STARTING, InstanceState.READY, InstanceState.DRAINING)


@dataclass(frozen=True, slots=True)
class FleetFigures:
    database: Database

    async def gather(self) -> Iterable[Metric]:
        """`firstlight_database_up` alone while Postgres is away: old figures would be taken for new ones."""
        try:
            async with asyncio.timeout(ANSWERS_WITHIN_S), self.database.session() as session:
                hosts = await list_hosts(session)
                instances = await list_instances(session, states=LIVE)
        except (FirstlightError, TimeoutError):
            return [_up(is_up=False)]
        return figures_of(hosts, instances)


def figures_of(hosts: Iterable[HostRecord], instances: Iterable[InstanceRecord]) -> Iterable[Metric]:
    return [_up(is_up=True), *_of_hosts(hosts), _of_instances(instances)]


def _up(*, is_up: bool) -> Metric:
    return GaugeMetricFamily("firstlight_database_up", "Whether Postgres answers.", value=float(is_up))


def _of_hosts(hosts: Iterable[HostRecord]) -> Iterable[Metric]:
    states = dict.fromkeys(map(str, HostState), 0) | Counter(str(host.state) for host in hosts)
    yield _family("firstlight_hosts", "Hosts by state.", "state", states)
    ready = [host for host in hosts if host.state is HostState.READY]
    gpus = [gpu for host in ready for gpu in host.gpus]
    held = sum(gpu.instance_id is not None for gpu in gpus)
    yield _family("firstlight_gpus", "GPUs of ready hosts.", "use", {"held": held, "free": len(gpus) - held})


def _of_instances(instances: Iterable[InstanceRecord]) -> Metric:
    states = dict.fromkeys(map(str, LIVE), 0) | Counter(str(one.state) for one in instances)
    return _family("firstlight_instances", "Live instances by state.", "state", states)


def _family(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family
