"""The fleet at work: requests come, wait, run and end; instances start, serve, move, stop.

The cluster does what policies decide and holds the laws: a GPU has one holder, a request one place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from random import Random

from firstlight.domain.fleet import Tier
from simulator.agenda import Agenda
from simulator.cache import Cache
from simulator.entities import Instance, InstanceState, ModelSpec, Request, SimHost
from simulator.journal import Journal
from simulator.link import Link
from simulator.policy import Policy
from simulator.scenario import GB, Fleet, Scenario
from simulator.shared_cores import SharedCores
from simulator.transfers import Transfers


class Cluster:
    def __init__(
        self, scenario: Scenario, models: Sequence[ModelSpec], policy: Policy, *, random: Random
    ) -> None:
        self.scenario = scenario
        self.models = tuple(models)
        self.policy = policy
        self.agenda = Agenda()
        self.loader = scenario.loaders[policy.loader]
        self.hosts = tuple(_host(scenario.fleet, index) for index in range(scenario.fleet.hosts))
        self.transfers = Transfers(self.agenda, scenario.fleet, self.loader, policy, random)
        self.instances: dict[str, Instance] = {}
        self.by_model: dict[str, dict[str, Instance]] = {model.name: {} for model in self.models}
        self.waiting: dict[str, deque[Request]] = {}
        self.cores = SharedCores(scenario.fleet.shared_machine)
        self.journal = Journal(gpus=sum(host.gpu_count for host in self.hosts))
        self.unfinished = 0
        self._started = 0
        self._is_placing = False
        if policy.keeps_ssd and policy.is_given_copies:
            self._place_copies()
        policy.bind(self)

    @property
    def now_s(self) -> float:
        return self.agenda.now_s

    def drop_from_dram(self) -> None:
        """Leave checkpoints on SSDs alone, as a restart of every store would. Nothing may be on its way."""
        for host in self.hosts:
            assert not host.arriving and not host.background, "what arrives is not dropped"
            for name in host.dram.names():
                host.dram.drop(name)
                host.refresh(name)

    # --- requests ---

    def submit(self, requests: Sequence[Request]) -> None:
        self.unfinished += len(requests)
        for request in requests:
            self.agenda.at(request.arrival_s, partial(self._arrive, request))

    def run(self) -> None:
        """Until every request has ended, one way or the other."""
        self.agenda.run(is_over=lambda: self.unfinished == 0)

    def waiting_for(self, model: ModelSpec) -> int:
        return len(self.waiting.get(model.name, ()))

    def places_starting(self, model: ModelSpec) -> int:
        """Requests that instances on their way will take."""
        starting = sum(
            instance.state is InstanceState.LOADING and instance.moves_from is None
            for instance in self.by_model[model.name].values()
        )
        return starting * self.scenario.max_concurrency

    def _arrive(self, request: Request) -> None:
        request.waiting_since_s = self.now_s
        self.policy.arrived(request)
        instance = self._open_instance(request.model)
        if instance is not None:
            self._serve(request, instance)
            return
        self.waiting.setdefault(request.model.name, deque()).append(request)
        request.give_up = self.agenda.after(self.scenario.timeout_s, partial(self._give_up, request))
        self.place_waiting()

    def _open_instance(self, model: ModelSpec) -> Instance | None:
        """The fullest that has room: the others may fall idle and go."""
        limit = self.scenario.max_concurrency
        open_ones = [
            one for one in self.by_model[model.name].values() if one.is_open and len(one.requests) < limit
        ]
        return max(open_ones, key=lambda one: len(one.requests), default=None)

    def _give_up(self, request: Request) -> None:
        queue = self.waiting[request.model.name]
        queue.remove(request)
        if not queue:
            del self.waiting[request.model.name]
        request.waited_s += self.now_s - request.waiting_since_s
        request.has_timed_out = True
        self.unfinished -= 1

    def _serve(self, request: Request, instance: Instance) -> None:
        now_s, model = self.now_s, request.model
        assert instance.is_open and len(instance.requests) < self.scenario.max_concurrency
        if instance.expiry is not None:
            instance.expiry.cancel()
            instance.expiry = None
        if not instance.requests:
            self.journal.computing(now_s, +len(instance.gpus))
        if request.give_up is not None:
            request.give_up.cancel()
            request.give_up = None
        request.waited_s += now_s - request.waiting_since_s
        instance.requests[request] = None
        prefill_s, fleet = model.prefill_s(request.prompt_tokens + request.tokens_done), self.scenario.fleet
        if fleet.first_pass_s and not instance.has_served:
            prefill_s += fleet.first_pass_s * self.transfers.varied()
        if not instance.has_served and not instance.is_speculative and instance.ready_s == now_s:
            if request.first_token_s is None:
                request.start_tier = instance.tier
            if self.policy.computes_while_loading:
                # All but the last layer can be computed while that one's bytes come.
                hidden_s = fleet.hidden_load * instance.load_s
                prefill_s = max(prefill_s / model.layers, prefill_s - hidden_s)
        instance.has_served = True
        request.decoding_from_s = now_s + prefill_s * self._slowdown(instance)
        if request.first_token_s is None:
            request.first_token_s = request.decoding_from_s
        left = request.output_tokens - request.tokens_done
        end_s = request.decoding_from_s + max(0, left - 1) / model.decode_tokens_per_s
        request.finish = self.agenda.at(end_s, partial(self._finish, request, instance))

    def _put_off(self, request: Request, instance: Instance, later_s: float) -> None:
        """What is left of it comes so much later, from `instance`; its first token too, if it was to come."""
        assert request.finish is not None
        request.finish.cancel()
        if request.first_token_s is not None and request.first_token_s > self.now_s:
            request.first_token_s += later_s
        request.decoding_from_s += later_s
        end_s = max(self.now_s, request.finish.at_s) + later_s
        request.finish = self.agenda.at(end_s, partial(self._finish, request, instance))

    def _finish(self, request: Request, instance: Instance) -> None:
        request.end_s = self.now_s
        self.unfinished -= 1
        del instance.requests[request]
        if not instance.requests:
            self.journal.computing(self.now_s, -len(instance.gpus))
        self._take_next(instance)
        self.place_waiting()

    def _take_next(self, instance: Instance) -> None:
        """Requests that wait for this model, as many as there is room for; else it is idle."""
        queue = self.waiting.get(instance.model.name)
        while queue and instance.is_open and len(instance.requests) < self.scenario.max_concurrency:
            self._serve(queue.popleft(), instance)
        if queue is not None and not queue:
            del self.waiting[instance.model.name]
        if instance.requests:
            return
        if instance.moves_to is not None:
            # Its last request ended before the move did: what was the destination is an instance like others.
            self._let_go_of_move(instance)
        elif instance.is_open:
            instance.idle_since_s = self.now_s
            self.policy.became_idle(instance)
            if instance.is_idle and (keep_s := self.policy.keep_alive_s(instance)) is not None:
                instance.expiry = self.agenda.after(keep_s, partial(self._expire, instance))

    def place_waiting(self) -> None:
        """Have the policy start what waits, the longest waiting first, while there is room."""
        if self._is_placing:
            return
        self._is_placing = True
        try:
            before = -1
            # Who is preempted meanwhile is placed at once, too.
            while before != self.journal.preemptions:
                before = self.journal.preemptions
                self._place_round()
        finally:
            self._is_placing = False

    def _place_round(self) -> None:
        for name in sorted(self.waiting, key=lambda name: self.waiting[name][0].arrival_s):
            while name in self.waiting and self.has_room():
                request = self.waiting[name][0]
                if self.policy.starts_wanted(request.model) <= 0 or not self.policy.place(request):
                    break

    def has_room(self) -> bool:
        """Whether a GPU could be had: no start or move can do without one."""
        if self.journal.held < self.journal.gpus:
            return True
        return self.policy.reclaims_idle and any(one.is_idle for one in self.instances.values())

    def look_again(self, after_s: float) -> None:
        """Ask the policy anew later, though nothing may have happened by then."""
        self.agenda.after(after_s, self.place_waiting)

    # --- instances ---

    def start(
        self,
        model: ModelSpec,
        host: SimHost,
        gpus: Sequence[int],
        *,
        awaits: Sequence[Instance] = (),
        moves_from: Instance | None = None,
        peer: SimHost | None = None,
        predicted_s: float | None = None,
        is_speculative: bool = False,
    ) -> Instance:
        """Start an instance on GPUs that are free, or that `awaits` will have given back.

        Its bytes move at once either way.
        """
        self._started += 1
        instance = Instance(f"i{self._started}", model, host, tuple(gpus), self.now_s)
        instance.moves_from, instance.predicted_s = moves_from, predicted_s
        instance.is_speculative = is_speculative
        self.instances[instance.instance_id] = instance
        self.by_model[model.name][instance.instance_id] = instance
        for index in gpus:
            holder = host.holders[index]
            if holder is None:
                self._hold(instance, index)
            else:
                assert holder in awaits, f"GPU {index} of {host.host_id} is {holder.instance_id}'s"
        for victim in awaits:
            instance.awaits.add(victim.instance_id)
            victim.heirs.append(instance)
        others = self.instances.values()
        for other, request, later_s in self.cores.held_up(instance, others, now_s=self.now_s):
            self._put_off(request, other, later_s)
        slowdown = self._slowdown(instance)
        arrival = self.transfers.bring(model, host, peer=peer, slowdown=slowdown)
        instance.tier, instance.arrives_s = arrival.tier, arrival.at_s
        self.journal.started(arrival.tier)
        if not instance.awaits:
            self._has_gpus(instance)
        return instance

    def _hold(self, instance: Instance, index: int) -> None:
        assert instance.host.holders[index] is None, "a GPU has one holder"
        instance.host.holders[index] = instance
        self.journal.holding(self.now_s, +1)

    def _has_gpus(self, instance: Instance) -> None:
        """Bytes that came meanwhile are there; the rest follows them to the GPUs."""
        now_s, fleet = self.now_s, self.scenario.fleet
        copy_s = self.transfers.copy_s(instance.model, instance.host)
        loaded_s = max(now_s + copy_s, instance.arrives_s)
        if instance.tier is Tier.REMOTE and not self.policy.streams_downloads:
            # Stored first, and read when it is whole: from the page cache, which has just written it.
            loaded_s = max(now_s, instance.arrives_s) + copy_s
        instance.load_s = loaded_s - now_s
        varied = self.transfers.varied() * self._slowdown(instance)
        self.cores.started(now_s)
        instance.attach_s = (fleet.attach_s + self.loader.overhead_s) * varied
        # The control plane's work varies as much as an engine's: both are a busy machine's.
        self.agenda.at(
            loaded_s + fleet.control_s * varied + instance.attach_s, partial(self._ready, instance)
        )

    def _slowdown(self, instance: Instance) -> float:
        return self.cores.slowdown(instance, self.instances.values(), now_s=self.now_s)

    def _ready(self, instance: Instance) -> None:
        instance.state = InstanceState.READY
        instance.ready_s = self.now_s
        self.journal.ready(instance, self.now_s)
        self.policy.became_ready(instance)
        if (source := instance.moves_from) is not None:
            self._hand_over_soon(source, instance)
        else:
            self._take_next(instance)
        self.place_waiting()

    def _expire(self, instance: Instance) -> None:
        if instance.is_idle:
            self._release(instance)
            self.place_waiting()

    def evict(self, instance: Instance) -> None:
        """End an idle instance; its GPUs are free, or its heir's, in a moment."""
        assert instance.is_idle, "only what is idle is evicted"
        if instance.expiry is not None:
            instance.expiry.cancel()
        instance.state = InstanceState.DRAINING
        self.journal.evictions += 1

        def done() -> None:
            self._release(instance)
            self.place_waiting()

        self.agenda.after(self.scenario.fleet.evict_s, done)

    def _release(self, instance: Instance) -> None:
        assert not instance.requests, "an instance with requests is not released"
        if instance.expiry is not None:
            instance.expiry.cancel()
        instance.state = InstanceState.GONE
        del self.instances[instance.instance_id]
        del self.by_model[instance.model.name][instance.instance_id]
        for index in instance.gpus:
            instance.host.holders[index] = None
        self.journal.holding(self.now_s, -len(instance.gpus))
        for heir in instance.heirs:
            if heir.host is instance.host:
                for index in instance.gpus:
                    if index in heir.gpus:
                        self._hold(heir, index)
            heir.awaits.discard(instance.instance_id)
            if not heir.awaits:
                self._has_gpus(heir)

    # --- moves and preemptions ---

    def move(
        self,
        source: Instance,
        host: SimHost,
        gpus: Sequence[int],
        *,
        awaits: Sequence[Instance] = (),
        to: Instance | None = None,
    ) -> Instance:
        """Have the requests of `source` go on elsewhere: at idle instance `to`, or at one that is started.

        Source decodes until the hand-over; then its GPUs are free, or its heir's.
        """
        assert source.is_open and source.requests, "what moves is open and has something to move"
        if to is None:
            to = self.start(source.model, host, gpus, awaits=awaits, moves_from=source)
            source.moves_to = to
            return to
        assert to.is_idle, "a move joins an idle instance only"
        if to.expiry is not None:
            to.expiry.cancel()
            to.expiry = None
        to.moves_from, source.moves_to = source, to
        self._hand_over_soon(source, to)
        return to

    def _hand_over_soon(self, source: Instance, to: Instance) -> None:
        move = self.scenario.migration
        tokens = sum(request.tokens_now(self.now_s) for request in source.requests)
        seconds = move.overhead_s * len(source.requests) + move.seconds_per_token * tokens
        seconds *= self.transfers.varied()

        def hand_over() -> None:
            if source.moves_to is to:
                self.policy.moved(source, tokens=tokens, seconds=seconds)
                self._hand_over(source, to)

        self.agenda.after(seconds, hand_over)

    def _hand_over(self, source: Instance, to: Instance) -> None:
        pause_s = self.scenario.migration.pause_s
        to.moves_from = None
        to.has_served = True
        for request in tuple(source.requests):
            del source.requests[request]
            to.requests[request] = None
            request.migrations += 1
            request.paused_s += pause_s
            self._put_off(request, to, pause_s)
        if to.requests and len(to.gpus) != len(source.gpus):
            self.journal.computing(self.now_s, len(to.gpus) - len(source.gpus))
        self.journal.migrations += 1
        self._release(source)
        self._take_next(to)
        self.place_waiting()

    def _let_go_of_move(self, source: Instance) -> None:
        to, source.moves_to = source.moves_to, None
        assert to is not None
        to.moves_from = None
        self._release(source)
        if to.state is InstanceState.READY:
            self._take_next(to)

    def preempt(self, instance: Instance) -> tuple[Request, ...]:
        """Stop it now: its requests wait again, at the front, and their caches must be computed anew."""
        assert instance.is_open and instance.requests
        now_s = self.now_s
        stopped = tuple(instance.requests)
        self.journal.computing(now_s, -len(instance.gpus))
        for request in reversed(stopped):
            assert request.finish is not None
            request.finish.cancel()
            tokens = request.tokens_now(now_s)
            if now_s < request.decoding_from_s and not request.tokens_done:
                # Its first token had not come yet: nothing was sent.
                request.first_token_s = None
                remaining_s = request.arrival_s + self.scenario.timeout_s - now_s
                request.give_up = self.agenda.after(remaining_s, partial(self._give_up, request))
            self.journal.preempted(tokens)
            request.tokens_done = min(request.output_tokens, tokens - request.prompt_tokens)
            request.preemptions += 1
            request.waiting_since_s = now_s
            self.waiting.setdefault(request.model.name, deque()).appendleft(request)
        instance.requests.clear()
        self._release(instance)
        return stopped

    def _place_copies(self) -> None:
        """Each checkpoint on so many SSDs, in turn."""
        copies = min(self.scenario.fleet.ssd_copies, len(self.hosts))
        for index, model in enumerate(self.models):
            for step in range(copies):
                host = self.hosts[(index + step) % len(self.hosts)]
                if host.ssd.used_bytes + model.size_bytes <= host.ssd.capacity_bytes:
                    host.ssd.add(model.name, model.size_bytes)
                    host.tiers[model.name] = Tier.SSD

    def check(self) -> None:
        """Raises: AssertionError where a law of the fleet is broken."""
        held = 0
        for host in self.hosts:
            for index, holder in enumerate(host.holders):
                if holder is not None:
                    assert holder.instance_id in self.instances, "a GPU is held by an instance that is gone"
                    assert index in holder.gpus and holder.host is host
                    held += 1
            assert 0 <= host.dram.used_bytes <= host.dram.capacity_bytes
            assert 0 <= host.ssd.used_bytes <= host.ssd.capacity_bytes
        assert held == self.journal.held, "GPUs are counted as they are held"
        for instance in self.instances.values():
            assert len(instance.requests) <= self.scenario.max_concurrency


def _host(fleet: Fleet, index: int) -> SimHost:
    return SimHost(
        host_id=f"host-{index + 1}",
        gpu_count=fleet.gpus_per_host,
        gpu_memory_bytes=int(fleet.gpu_memory_gb * GB),
        dram=Cache(int(fleet.dram_pool_gb * GB)),
        ssd=Cache(int(fleet.ssd_gb * GB)),
        ssd_link=Link(fleet.ssd_gb_per_s * GB),
        down_link=Link(fleet.network_gb_per_s * GB),
        up_link=Link(fleet.network_gb_per_s * GB),
        gpu_bytes_per_s=fleet.gpu_gb_per_s * GB,
        holders=[None] * fleet.gpus_per_host,
    )
