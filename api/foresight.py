"""Which host a start will most likely be placed on, from a picture of the fleet kept in memory.

Reading the fleet anew takes milliseconds in which bytes could move already. The guess is the scheduler's own
answer to the last picture; it decides nothing. Where it was wrong it has cost a prefetch, and the decision
itself tells the right host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from firstlight.database.fleet_view import FleetPicture, WantedModel
from firstlight.database.plan_writing import peer_endpoints
from firstlight.domain.fleet import FleetSnapshot, Gpu, Host, StartRequest
from firstlight.domain.names import HostId, InstanceId
from firstlight.domain.scheduler import Migrate, Place, decide

# An older picture says too little of which GPUs are free and where the bytes lie.
FRESH_FOR_S = 120.0
# Models whose next start is guessed before anybody asks.
GUESSED_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Where a start goes, and what its host must know to bring the checkpoint there."""

    host_id: HostId
    checkpoint_id: str
    source: str = ""
    dtype: str = ""
    expected_digest: str = ""
    peer_endpoints: tuple[str, ...] = ()


class Foresight:
    """The last picture, corrected by what is known to have happened since."""

    def __init__(self) -> None:
        self._picture: FleetPicture | None = None
        self._guesses: dict[str, Foreseen | None] = {}
        # Models that were asked about, the last one last.
        self._asked: dict[str, None] = {}

    def see(self, picture: FleetPicture) -> None:
        self._picture = picture
        self._guesses.clear()

    def placed(self, place: Place | Migrate, instance_id: str) -> None:
        """A start has just been given these GPUs."""
        taken = frozenset(place.gpu_indices)

        def gpu_now(gpu: Gpu) -> Gpu:
            return replace(gpu, instance_id=InstanceId(instance_id)) if gpu.index in taken else gpu

        self._change(lambda host: host.host_id == place.host_id, gpu_now)

    def ended(self, instance_id: str, host_id: str) -> None:
        """An instance has given its GPUs back."""

        def gpu_now(gpu: Gpu) -> Gpu:
            return replace(gpu, instance_id=None, free_in_s=None) if gpu.instance_id == instance_id else gpu

        self._change(lambda host: host.host_id == host_id, gpu_now, without=instance_id)

    def guess(self, model: str, *, now_unix_s: float) -> Foreseen | None:
        """Where a start of `model` would go by the picture; None if it is old or no host could take it."""
        self._note(model)
        return self._guess(model, now_unix_s=now_unix_s)

    def likely(self) -> list[str]:
        """Models that may be asked about next: those asked about lately, then any of the picture's."""
        known = self._picture.models if self._picture is not None else {}
        return [*dict.fromkeys((*reversed(self._asked), *known))][:GUESSED_AHEAD]

    def guess_ahead(self, model: str, *, now_unix_s: float) -> None:
        """So that nobody who asks for `model` waits for the scheduler's answer."""
        self._guess(model, now_unix_s=now_unix_s)

    def _note(self, model: str) -> None:
        self._asked.pop(model, None)
        self._asked[model] = None
        if len(self._asked) > GUESSED_AHEAD:
            del self._asked[next(iter(self._asked))]

    def _guess(self, model: str, *, now_unix_s: float) -> Foreseen | None:
        picture = self._picture
        if picture is None or now_unix_s - picture.snapshot.taken_at_unix_s > FRESH_FOR_S:
            return None
        if model not in self._guesses and (wanted := picture.models.get(model)) is not None:
            decision = decide(StartRequest(wanted.model, may_wait=False), picture.snapshot)
            self._guesses[model] = (
                foreseen(decision, wanted, picture.snapshot)
                if isinstance(decision, Place | Migrate)
                else None
            )
        return self._guesses.get(model)

    def _change(
        self, is_meant: Callable[[Host], bool], gpu_now: Callable[[Gpu], Gpu], *, without: str | None = None
    ) -> None:
        """`without`: an instance that neither runs nor starts any more, and counts against no maximum."""
        if self._picture is None:
            return
        snapshot = self._picture.snapshot
        hosts = tuple(
            replace(host, gpus=tuple(gpu_now(gpu) for gpu in host.gpus)) if is_meant(host) else host
            for host in snapshot.hosts
        )
        running = tuple(one for one in snapshot.running if one.instance_id != without)
        starts = tuple(one for one in snapshot.starts if one.instance_id != without)
        self.see(
            replace(self._picture, snapshot=replace(snapshot, hosts=hosts, running=running, starts=starts))
        )


def foreseen(place: Place | Migrate, wanted: WantedModel, snapshot: FleetSnapshot) -> Foreseen:
    """What a placement means for the chosen host's store."""
    return Foreseen(
        host_id=place.host_id,
        checkpoint_id=wanted.model.checkpoint_id,
        source=wanted.source,
        dtype=wanted.dtype,
        expected_digest=wanted.manifest_digest,
        peer_endpoints=tuple(peer_endpoints(wanted.model, place, snapshot)),
    )
