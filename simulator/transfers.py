"""How a checkpoint comes to a host: over which links, behind what, and what the caches hold afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

from firstlight.domain.fleet import Edge, Tier
from simulator.agenda import Agenda
from simulator.entities import ModelSpec, SimHost
from simulator.link import Background
from simulator.policy import Policy
from simulator.scenario import Fleet, Loader


@dataclass(frozen=True, slots=True)
class Arrival:
    """When the last byte is where GPUs can copy it from, and from which tier it came."""

    at_s: float
    tier: Tier


class Transfers:
    """Carries checkpoints as `policy` keeps them. Every transfer's time varies by the fleet's noise."""

    def __init__(self, agenda: Agenda, fleet: Fleet, loader: Loader, policy: Policy, random: Random) -> None:
        self._agenda = agenda
        self._fleet = fleet
        self._loader = loader
        self._policy = policy
        self._random = random

    def bring(
        self, model: ModelSpec, host: SimHost, *, peer: SimHost | None = None, slowdown: float = 1.0
    ) -> Arrival:
        """Begin to bring the checkpoint near the GPUs; what is under way already is joined."""
        now_s = self._agenda.now_s
        tier = host.tier_of(model)
        if tier is Tier.DRAM:
            host.dram.touch(model.name)
            return Arrival(now_s, tier)
        if (arriving_s := host.arriving.get(model.name)) is not None:
            return Arrival(arriving_s, tier)
        size_bytes = model.size_bytes * self.varied() * slowdown
        if (under_way := host.background.pop(model.name, None)) is not None:
            under_way.cancel()
            size_bytes = under_way.remaining_bytes()
            at_s = host.ssd_link.reserve(size_bytes, now_s=now_s)[1]
            self._will_arrive(model, host, at_s)
            return Arrival(at_s, tier)
        if tier is Tier.SSD:
            host.ssd.touch(model.name)
            begin_s, at_s = host.ssd_link.reserve(size_bytes, now_s=now_s, share=self._loader.ssd_share)
            self._seen(model, host, Edge.SSD_TO_DRAM, at_s - begin_s)
        elif peer is not None:
            tier, at_s = Tier.PEER, self._from_peer(size_bytes, host, peer, model)
        else:
            at_s = self._from_source(size_bytes, host, model)
        if tier is not Tier.SSD and self._policy.keeps_ssd:
            self._dropped(host, host.ssd.add(model.name, model.size_bytes))
        if self._policy.keeps_dram and self._has_room(model, host):
            host.dram.pin(model.name)
            self._will_arrive(model, host, at_s)
        host.refresh(model.name)
        return Arrival(at_s, tier)

    def copy_s(self, model: ModelSpec, host: SimHost) -> float:
        """DRAM to GPUs, each over its own link."""
        return model.size_bytes / model.gpus / (host.gpu_bytes_per_s * self._loader.gpu_share)

    def prefetch(self, model: ModelSpec, host: SimHost) -> bool:
        """From SSD into DRAM in the SSD's idle time, one at a time. False: it cannot be, or is there."""
        if host.tier_of(model) is not Tier.SSD or model.name in host.arriving or host.background:
            return False
        if not self._has_room(model, host):
            return False
        host.dram.pin(model.name)
        done = partial(self._prefetched, model, host)
        host.background[model.name] = Background(self._agenda, host.ssd_link, model.size_bytes, done)
        host.refresh(model.name)
        return True

    def varied(self) -> float:
        noise = self._fleet.noise
        return self._random.lognormvariate(0.0, noise) if noise else 1.0

    def _from_source(self, size_bytes: float, host: SimHost, model: ModelSpec) -> float:
        now_s = self._agenda.now_s
        source = self._fleet.source_gb_per_s
        share = 1.0 if source is None else min(1.0, source / self._fleet.network_gb_per_s)
        begin_s, at_s = host.down_link.reserve(size_bytes, now_s=now_s, share=share)
        self._seen(model, host, Edge.REMOTE_TO_SSD, at_s - begin_s)
        return at_s

    def _from_peer(self, size_bytes: float, host: SimHost, peer: SimHost, model: ModelSpec) -> float:
        rate = min(host.down_link.bytes_per_s, peer.up_link.bytes_per_s)
        if model.name not in peer.dram:
            rate = min(rate, peer.ssd_link.bytes_per_s)
        begin_s = max(self._agenda.now_s, host.down_link.until_s, peer.up_link.until_s)
        self._seen(model, host, Edge.PEER_TO_DRAM, size_bytes / rate)
        peer.up_link.hold(begin_s, size_bytes / rate)
        return host.down_link.hold(begin_s, size_bytes / rate)

    def _seen(self, model: ModelSpec, host: SimHost, edge: Edge, seconds: float) -> None:
        self._policy.transferred(host, edge, size_bytes=model.size_bytes, seconds=seconds)

    def _has_room(self, model: ModelSpec, host: SimHost) -> bool:
        order = self._policy.dram_order(host)
        dropped = host.dram.add(model.name, model.size_bytes, order=order)
        self._dropped(host, dropped)
        return dropped is not None

    def _dropped(self, host: SimHost, names: tuple[str, ...] | None) -> None:
        for name in names or ():
            host.refresh(name)

    def _will_arrive(self, model: ModelSpec, host: SimHost, at_s: float) -> None:
        host.arriving[model.name] = at_s
        self._agenda.at(at_s, partial(self._arrived, model, host))

    def _arrived(self, model: ModelSpec, host: SimHost) -> None:
        del host.arriving[model.name]
        host.dram.unpin(model.name)
        host.refresh(model.name)

    def _prefetched(self, model: ModelSpec, host: SimHost) -> None:
        del host.background[model.name]
        host.dram.unpin(model.name)
        host.refresh(model.name)
        self._policy.prefetched(host)
