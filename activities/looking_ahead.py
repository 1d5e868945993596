"""look_ahead: what is likely to be wanted is brought nearer, and hosts hear what is worth keeping warm.

Hints only: a host that does not answer, or has no room, costs nothing but the prefetch.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from temporalio.client import Client
from temporalio.exceptions import WorkflowAlreadyStartedError

from firstlight.contracts.starting import start_cold_start
from firstlight.contracts.starts import ColdStartInput
from firstlight.database.connection import Database
from firstlight.database.fleet_view import FleetPicture, WantedModel, read_picture
from firstlight.database.model_lives import live_models, read_lives
from firstlight.database.start_planning import plan_start
from firstlight.domain.autoscaling.keep_alive import KeepAlivePolicy, ModelLife
from firstlight.domain.autoscaling.prefetch import Likely, Prefetch, PrefetchBudget, plan_prefetch
from firstlight.domain.autoscaling.processes import ProcessesKept, processes_kept
from firstlight.domain.autoscaling.warmth import Layer
from firstlight.domain.errors import FirstlightError
from firstlight.domain.estimator import givers_of
from firstlight.domain.fleet import Host, Tier
from firstlight.domain.lifecycle import HostState
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.settings import Settings

# A host forgets what it was told when so many looks have not come.
LOOKS_MISSED = 3
TOLD_AT_ONCE = 50
# A download that is wanted begins within this time, and goes on by itself.
BEGINS_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAhead:
    database: Database
    client: Client
    channels: Channels
    policy: KeepAlivePolicy
    settings: Settings

    async def run(self, *, now_unix_s: float) -> list[str]:
        """One sentence per thing set going. Raises: DatabaseUnavailable."""
        async with self.database.session() as session:
            picture = await read_picture(session, now_unix_s=now_unix_s)
            lives = await read_lives(session, now_unix_s=now_unix_s)
            live = await live_models(session)
        # Policies take seconds over thousands of models, which this worker's heartbeats must not wait for.
        times_s = await asyncio.to_thread(self._times_s, lives)
        needs = await asyncio.to_thread(self._needs, lives, times_s, now_unix_s)
        await self._tell_hosts(picture, needs, _processes_kept(lives, times_s, picture, now_unix_s))
        prefetched = await self._prefetch(picture, needs)
        absent = {name: life for name, life in lives.items() if name in picture.models and name not in live}
        due = await asyncio.to_thread(self._due, absent, now_unix_s)
        started = [sentence for name in due for sentence in await self._start(name, now_unix_s)]
        return [*prefetched, *started]

    def _times_s(self, lives: Mapping[str, ModelLife]) -> dict[str, Mapping[Layer, float]]:
        return {name: self.policy.times_to_live_s(life) for name, life in lives.items()}

    def _needs(
        self, lives: Mapping[str, ModelLife], times_s: Mapping[str, Mapping[Layer, float]], now_unix_s: float
    ) -> dict[str, float]:
        """How likely each model is to be asked for within the horizon, if anybody ever asked for it."""
        found: dict[str, float] = {}
        for name, life in lives.items():
            idle_s = life.history.idle_s(now_unix_s)
            if idle_s is None:
                continue
            need = life.history.need_within(self.settings.prefetch_horizon_s, idle_s=idle_s)
            if need is not None:
                found[name] = 0.0 if idle_s > times_s[name][Layer.DRAM] else need
        return found

    async def _tell_hosts(
        self, picture: FleetPicture, needs: Mapping[str, float], kept: ProcessesKept
    ) -> None:
        by_checkpoint: dict[str, float] = {}
        for name, wanted in picture.models.items():
            if name in needs:
                # Two names of one checkpoint: it is wanted if either is.
                key = wanted.model.checkpoint_id
                by_checkpoint[key] = max(needs[name], by_checkpoint.get(key, 0.0))
        hosts = [host for host in picture.snapshot.hosts if host.state is HostState.READY]
        for first in range(0, len(hosts), TOLD_AT_ONCE):
            batch = hosts[first : first + TOLD_AT_ONCE]
            stores = (self._tell_store(host, picture, by_checkpoint) for host in batch)
            agents = (self._tell_agent(host, picture, kept.of(host.tiers)) for host in batch)
            await asyncio.gather(*stores, *agents)

    async def _tell_store(
        self, host: Host, picture: FleetPicture, by_checkpoint: Mapping[str, float]
    ) -> None:
        held = {str(key): by_checkpoint[key] for key in host.tiers if key in by_checkpoint}
        try:
            await self._store(picture, host.host_id).expect(held, good_for_s=self._good_for_s)
        except FirstlightError:
            # It evicts by cost and last use alone, as it would without us.
            return

    async def _tell_agent(self, host: Host, picture: FleetPicture, kept: ProcessesKept) -> None:
        if not kept.is_said:
            return
        agent = HostClient(self.channels, picture.addresses[host.host_id][0])
        try:
            await agent.keep_warm(
                architecture_s={str(key): kept_s for key, kept_s in kept.skeletons_s.items()},
                spare_s=kept.spares_s,
                good_for_s=self._good_for_s,
            )
        except FirstlightError:
            # It keeps everything once the last word has lost its force, as it would without us.
            return

    @property
    def _good_for_s(self) -> float:
        return LOOKS_MISSED * self.settings.reconcile_every_s

    async def _prefetch(self, picture: FleetPicture, needs: Mapping[str, float]) -> list[str]:
        settings = self.settings
        if not settings.prefetch_bytes:
            return []
        budget = PrefetchBudget(
            bytes_per_pass=settings.prefetch_bytes,
            copies_at_most=settings.prefetch_copies,
            dram_copies_at_most=settings.prefetch_dram_copies,
            dram_share=settings.prefetch_dram_share,
            need_at_least=settings.prefetch_need,
        )
        known = [
            Likely(wanted.model, needs.get(name, settings.prefetch_unknown_need))
            for name, wanted in picture.models.items()
        ]
        sizes = {wanted.model.checkpoint_id: wanted.model.size_bytes for wanted in picture.models.values()}
        chosen = await asyncio.to_thread(plan_prefetch, known, picture.snapshot, budget, sizes=sizes)
        told = await asyncio.gather(*(self._bring(prefetch, picture) for prefetch in chosen))
        return [sentence for sentence in told if sentence is not None]

    async def _bring(self, prefetch: Prefetch, picture: FleetPicture) -> str | None:
        wanted = picture.models[prefetch.model.name]
        store = self._store(picture, prefetch.host_id)
        peers = [host.peer_endpoint for host in givers_of(prefetch.model, picture.snapshot)]
        try:
            if prefetch.tier is Tier.DRAM:
                await store.prepare(
                    checkpoint_id=prefetch.model.checkpoint_id,
                    instance_id="look-ahead",
                    source=wanted.source,
                    dtype=wanted.dtype,
                    expected_digest=wanted.manifest_digest,
                    peer_endpoints=peers,
                    ahead=True,
                )
            else:
                await self._download(store, wanted, peers)
        except (FirstlightError, TimeoutError):
            return None
        return (
            f"{prefetch.model.name} goes to {prefetch.tier} of {prefetch.host_id} ahead of need: "
            f"{prefetch.reason}"
        )

    async def _download(self, store: StoreClient, wanted: WantedModel, peers: Sequence[str]) -> None:
        progress = store.download(
            checkpoint_id=wanted.model.checkpoint_id,
            source=wanted.source,
            dtype=wanted.dtype,
            expected_digest=wanted.manifest_digest,
            peer_endpoints=peers,
        )
        # It goes on by itself: for a minute after the last look that asked for it, and then from there.
        async with asyncio.timeout(BEGINS_WITHIN_S):
            async for _ in progress:
                return

    def _due(self, absent: Mapping[str, ModelLife], now_unix_s: float) -> list[str]:
        """Which of these, that do not run, the policy wants back by the time of the next look."""
        due = []
        for name, life in absent.items():
            idle_s = life.history.idle_s(now_unix_s)
            window = self.policy.window(life)
            soon_s = None if idle_s is None else idle_s + self.settings.reconcile_every_s
            if soon_s is not None and window.prewarm_s > 0 and window.is_held(soon_s):
                due.append(name)
        return due

    async def _start(self, model: str, now_unix_s: float) -> list[str]:
        try:
            planned = await plan_start(
                self.database,
                model=model,
                deadline_s=None,
                may_wait=True,
                request_id=f"prewarm-{secrets.token_hex(4)}",
                now_unix_s=now_unix_s,
            )
        except FirstlightError as obstacle:
            return [f"{model} is not brought back ahead of need: {obstacle.message}"]
        if planned.plan is None:
            return []
        request = ColdStartInput(
            plan=planned.plan,
            max_plans=self.settings.max_plans,
            candidates_markdown=planned.candidates_markdown,
        )
        try:
            await start_cold_start(self.client, request)
        except WorkflowAlreadyStartedError:
            return []
        return [f"{model} is brought back on {planned.plan.host_id} ahead of need"]

    def _store(self, picture: FleetPicture, host_id: str) -> StoreClient:
        return StoreClient(self.channels, picture.addresses[host_id][1])


def _processes_kept(
    lives: Mapping[str, ModelLife],
    times_s: Mapping[str, Mapping[Layer, float]],
    picture: FleetPicture,
    now_unix_s: float,
) -> ProcessesKept:
    quiet_s = {name: life.history.idle_s(now_unix_s) for name, life in lives.items()}
    return processes_kept(
        times_s,
        idle_s={name: idle_s for name, idle_s in quiet_s.items() if idle_s is not None},
        checkpoints={name: wanted.model.checkpoint_id for name, wanted in picture.models.items()},
    )
