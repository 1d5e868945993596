"""What the database learns from starts, transfers and moves: fitted by the domain's functions, as there."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace

from firstlight.domain.estimator import attach_key, move_key
from firstlight.domain.fleet import Edge, EdgeModel, Model, Tier
from firstlight.domain.learning import TransferObservation, fit_edge, learned_overhead_s, learned_seconds
from firstlight.domain.migration import MoveModel, MoveObservation, fit_move
from firstlight.domain.names import CheckpointId, ModelName
from simulator.cluster import Cluster
from simulator.entities import Instance, ModelSpec, SimHost

HOST_CLASS = "simulated"
OBSERVATIONS = 16


class Learning:
    """Priors of edges are what a probe at registration would say: the hardware's rates."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        host = cluster.hosts[0]
        source = cluster.scenario.fleet.source_gb_per_s
        wire = host.down_link.bytes_per_s
        prior = {
            Edge.REMOTE_TO_SSD: EdgeModel(0.0, min(wire, source * 1e9) if source else wire),
            Edge.PEER_TO_DRAM: EdgeModel(0.0, wire),
            Edge.SSD_TO_DRAM: EdgeModel(0.0, host.ssd_link.bytes_per_s),
            Edge.DRAM_TO_GPU: EdgeModel(0.0, host.gpu_bytes_per_s),
        }
        self._prior = prior
        self.edges = {one.host_id: dict(prior) for one in cluster.hosts}
        self.moves: dict[str, MoveModel] = {}
        self.control_s = 0.05
        self._models = {spec.name: self._model(spec) for spec in cluster.models}
        self._attached: defaultdict[tuple[str, str], deque[float]] = defaultdict(_latest)
        self._crossed: defaultdict[tuple[str, Edge], deque[TransferObservation]] = defaultdict(_latest)
        self._moved: defaultdict[str, deque[MoveObservation]] = defaultdict(_latest)
        self._control: deque[float] = deque(maxlen=OBSERVATIONS)

    def model(self, spec: ModelSpec) -> Model:
        return self._models[spec.name]

    def started(self, instance: Instance) -> None:
        """Its attach counts from where its bytes had come; from DRAM the copy to the GPUs is part of it."""
        if instance.ready_s is None or instance.attach_s is None:
            return
        attach_s = instance.attach_s + (instance.load_s if instance.tier is Tier.DRAM else 0.0)
        name, key = instance.model.name, attach_key(HOST_CLASS, instance.tier)
        seen = self._attached[name, key]
        seen.append(attach_s)
        learned = {**self._models[name].attach_s, key: learned_seconds(seen, attach_s)}
        self._models[name] = replace(self._models[name], attach_s=learned)
        self._control.append(self._cluster.scenario.fleet.control_s)
        self.control_s = learned_overhead_s(self._control, self.control_s)

    def transferred(self, host: SimHost, edge: Edge, *, size_bytes: float, seconds: float) -> None:
        seen = self._crossed[host.host_id, edge]
        seen.append(TransferObservation(int(size_bytes), seconds))
        self.edges[host.host_id][edge] = fit_edge(tuple(seen), self._prior[edge])

    def moved(self, spec: ModelSpec, *, tokens: int, seconds: float) -> None:
        seen = self._moved[spec.name]
        seen.append(MoveObservation(tokens, seconds))
        self.moves[move_key(ModelName(spec.name), HOST_CLASS)] = fit_move(tuple(seen))

    @staticmethod
    def _model(spec: ModelSpec) -> Model:
        return Model(
            name=ModelName(spec.name),
            checkpoint_id=CheckpointId(spec.name),
            size_bytes=spec.size_bytes,
            source_bytes=spec.size_bytes,
            gpu_count=spec.gpus,
        )


def _latest() -> deque:  # type: ignore[type-arg]
    return deque(maxlen=OBSERVATIONS)
