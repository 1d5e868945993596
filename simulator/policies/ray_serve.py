"""Ray Serve with a model that is downloaded by each start, and with an SSD cache in front."""

from __future__ import annotations

from typing import ClassVar

from simulator.policies.random import RandomPolicy


class RayServe(RandomPolicy):
    """Its engine reads a checkpoint in the usual format; nothing stays on the host."""

    name: ClassVar[str] = "ray-serve"
    loader: ClassVar[str] = "plain"
    keeps_dram: ClassVar[bool] = False
    keeps_ssd: ClassVar[bool] = False


class RayServeCached(RandomPolicy):
    """The same over an SSD that keeps what was used last; replicas are placed without regard to it.

    The cache is empty at first: nothing but a start fills it.
    """

    name: ClassVar[str] = "ray-serve-cached"
    loader: ClassVar[str] = "plain"
    keeps_dram: ClassVar[bool] = False
    is_given_copies: ClassVar[bool] = False
