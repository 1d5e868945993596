"""What a policy is asked: where a start goes, how long idle instances stay, what is kept near."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING, ClassVar

from firstlight.domain.fleet import Edge

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.entities import Instance, ModelSpec, Request, SimHost

Order = Callable[[Iterable[str]], Iterable[str]]


class Policy(ABC):
    """Decides over one `Cluster`, to which it is bound before anything happens.

    The class attributes say what kind of system it is; the cluster heeds them, so that all the rest is alike.
    """

    name: ClassVar[str]
    # Which of the scenario's ways to load.
    loader: ClassVar[str] = "fast"
    keeps_dram: ClassVar[bool] = True
    keeps_ssd: ClassVar[bool] = True
    # Whether checkpoints lie on SSDs before anybody asks, as the scenario says.
    is_given_copies: ClassVar[bool] = True
    # Whether what is downloaded goes to the GPU as it comes, rather than when all of it is stored.
    streams_downloads: ClassVar[bool] = False
    # Whether idle instances end when others need their GPUs; else only their keep-alive ends them.
    reclaims_idle: ClassVar[bool] = False
    # Whether an engine computes with the layers that are there while others still come.
    computes_while_loading: ClassVar[bool] = False
    # What a scenario may set of it, by name.
    option_names: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, random: Random, options: Mapping[str, float]) -> None:
        self.random = random
        self.options = options
        self.cluster: Cluster

    def bind(self, cluster: Cluster) -> None:
        self.cluster = cluster

    @abstractmethod
    def place(self, request: Request) -> bool:
        """Begin a start for `request`, which waits. False: nothing can be done for it now."""

    @abstractmethod
    def keep_alive_s(self, instance: Instance) -> float | None:
        """How long an instance that has become idle stays; None: until something else ends it."""

    def starts_wanted(self, model: ModelSpec) -> int:
        """How many more instances the model's waiting requests need: a place for each."""
        places = self.cluster.places_starting(model)
        each = self.cluster.scenario.max_concurrency
        return -(-max(0, self.cluster.waiting_for(model) - places) // each)

    # What follows need not be heeded; a policy that does not care has nothing to write.

    def arrived(self, request: Request) -> None:  # noqa: B027
        """A request came, whether or not there is room for it."""

    def became_ready(self, instance: Instance) -> None:  # noqa: B027
        """A start is done."""

    def became_idle(self, instance: Instance) -> None:  # noqa: B027
        """It has no request any more."""

    def prefetched(self, host: SimHost) -> None:  # noqa: B027
        """A transfer in the background of `host` is done."""

    def transferred(self, host: SimHost, edge: Edge, *, size_bytes: float, seconds: float) -> None:  # noqa: B027
        """A checkpoint crosses an edge in so many seconds, its queue not counted."""

    def moved(self, source: Instance, *, tokens: int, seconds: float) -> None:  # noqa: B027
        """The requests of `source` have gone elsewhere."""

    def dram_order(self, host: SimHost) -> Order | None:
        """In which order checkpoints leave the DRAM pool; None: least recently used first."""
        return None
