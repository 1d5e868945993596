"""Fleets made up for measuring the scheduler: hosts, checkpoints in their tiers, and who runs where.

Models are asked for by Zipf's law. Every host keeps popular checkpoints on SSD and a few of them in DRAM; its
GPUs are held by instances that are busy or idle, or by nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from firstlight.domain.estimator import attach_key
from firstlight.domain.fleet import (
    Edge,
    EdgeModel,
    FleetSnapshot,
    Gpu,
    Host,
    Model,
    Running,
    StartRequest,
    Tier,
)
from firstlight.domain.lifecycle import HostState
from firstlight.domain.names import CheckpointId, HostId, InstanceId, ModelName

GIB = 1 << 30
CLASSES = ("a40", "h100")
ON_SSD = 40
IN_DRAM = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetShape:
    """`load` is the share of GPUs that are held, `idle` the share of instances that have nothing to do."""

    hosts: int
    models: int
    load: float
    idle: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.hosts:,} hosts, {self.models:,} models, {self.load:.0%} held"


class Zipf:
    """Draws models: the n-th is asked for in proportion to 1/n."""

    def __init__(self, models: Sequence[Model], chance: Random) -> None:
        self.models = models
        self._chance = chance
        self._weights = list(accumulate(1 / rank for rank in range(1, len(models) + 1)))

    def draw(self, count: int) -> list[Model]:
        return self._chance.choices(self.models, cum_weights=self._weights, k=count)


def make_models(count: int, chance: Random) -> list[Model]:
    return [
        Model(
            name=ModelName(f"m{index}"),
            checkpoint_id=CheckpointId(f"m{index}@1"),
            size_bytes=chance.randint(2, 60) * GIB,
            source_bytes=chance.randint(2, 60) * GIB,
            gpu_count=chance.choices((1, 2, 4), (8, 1, 1))[0],
            attach_s={
                attach_key(name, tier): chance.uniform(0.05, 0.3)
                for name in CLASSES
                for tier in (Tier.DRAM, Tier.SSD)
            },
            priority=chance.choices((0, 1), (9, 1))[0],
            max_instances=64,
        )
        for index in range(count)
    ]


def make_fleet(shape: FleetShape, chance: Random) -> tuple[FleetSnapshot, Zipf]:
    """A snapshot, and the law by which its models are asked for."""
    zipf = Zipf(make_models(shape.models, chance), chance)
    made = [_host(index, shape, zipf, chance) for index in range(shape.hosts)]
    snapshot = FleetSnapshot(
        taken_at_unix_s=0.0,
        hosts=tuple(host for host, _ in made),
        running=tuple(one for _, tenants in made for one in tenants),
    )
    return snapshot, zipf


def make_requests(zipf: Zipf, count: int) -> list[StartRequest]:
    return [StartRequest(model, deadline_s=300.0, waited_s=0.0) for model in zipf.draw(count)]


def _host(index: int, shape: FleetShape, zipf: Zipf, chance: Random) -> tuple[Host, list[Running]]:
    host_id = HostId(f"host-{index:04}")
    owners: list[InstanceId | None] = []
    tenants: list[Running] = []
    gpu_count = chance.randint(4, 8)
    while len(owners) < gpu_count:
        model = zipf.draw(1)[0]
        if chance.random() > shape.load or len(owners) + model.gpu_count > gpu_count:
            owners.append(None)
            continue
        instance_id = InstanceId(f"i-{index:04}-{len(owners)}")
        indices = tuple(range(len(owners), len(owners) + model.gpu_count))
        owners += [instance_id] * model.gpu_count
        tenants.append(_tenant(instance_id, model, host_id, indices, shape, chance))
    checkpoints = [model.checkpoint_id for model in zipf.draw(ON_SSD)] + [
        one.model.checkpoint_id for one in tenants
    ]
    host = Host(
        host_id=host_id,
        host_class=chance.choice(CLASSES),
        state=HostState.READY,
        gpus=tuple(Gpu(n, 80 * GIB, owner) for n, owner in enumerate(owners)),
        edges={
            Edge.SSD_TO_DRAM: EdgeModel(0.01, chance.uniform(3e9, 7e9)),
            Edge.REMOTE_TO_SSD: EdgeModel(1.0, chance.uniform(5e8, 1.2e9)),
            Edge.PEER_TO_DRAM: EdgeModel(0.02, chance.uniform(1e9, 3e9)),
            Edge.DRAM_TO_GPU: EdgeModel(0.0, chance.uniform(2e10, 5e10)),
        },
        tiers={
            checkpoint_id: Tier.DRAM if rank >= len(checkpoints) - IN_DRAM else Tier.SSD
            for rank, checkpoint_id in enumerate(checkpoints)
        },
        queued_bytes={Edge.SSD_TO_DRAM: chance.choice((0, 0, 13 * GIB))},
        dram_capacity_bytes=512 * GIB,
        ssd_capacity_bytes=2000 * GIB,
        peer_endpoint=f"10.0.{index >> 8}.{index & 255}:9000",
        uplink_queued_bytes=chance.choice((0, 0, 13 * GIB)),
    )
    return host, tenants


def _tenant(
    instance_id: InstanceId,
    model: Model,
    host_id: HostId,
    indices: tuple[int, ...],
    shape: FleetShape,
    chance: Random,
) -> Running:
    is_idle = chance.random() < shape.idle
    return Running(
        instance_id=instance_id,
        model=model,
        host_id=host_id,
        gpu_indices=indices,
        requests=0 if is_idle else chance.randint(1, 4),
        tokens=0 if is_idle else chance.randint(50, 8000),
        idle_s=chance.expovariate(1 / 60) if is_idle else None,
    )
