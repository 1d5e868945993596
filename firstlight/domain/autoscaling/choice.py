"""Policies by the names that settings and simulator scenarios use."""

from __future__ import annotations

from firstlight.domain.autoscaling.keep_alive import FixedKeepAlive, HybridHistogram, KeepAlivePolicy
from firstlight.domain.autoscaling.layered import LayeredKeepAlive
from firstlight.domain.autoscaling.scaling import ConcurrencyScaling, ScalingPolicy
from firstlight.domain.errors import InvalidSettings

KEEP_ALIVE_POLICIES = (FixedKeepAlive.name, HybridHistogram.name, LayeredKeepAlive.name)


def keep_alive_policy(name: str, *, longest_s: float = 3600.0) -> KeepAlivePolicy:
    """The policy of that name; `longest_s` bounds what it may decide. Raises: InvalidSettings."""
    match name:
        case FixedKeepAlive.name:
            return FixedKeepAlive()
        case HybridHistogram.name:
            return HybridHistogram(longest_s=longest_s)
        case LayeredKeepAlive.name:
            return LayeredKeepAlive(longest_s=longest_s)
    raise InvalidSettings(
        f"there is no keep-alive policy {name!r}; there are {', '.join(KEEP_ALIVE_POLICIES)}"
    )


def scaling_policy(
    name: str, *, out_at: float, out_after_s: float, in_at: float, in_after_s: float
) -> ScalingPolicy:
    """The policy of that name. Raises: InvalidSettings."""
    if name == ConcurrencyScaling.name:
        return ConcurrencyScaling(
            target=out_at, out_after_s=out_after_s, target_in=in_at, in_after_s=in_after_s
        )
    raise InvalidSettings(f"there is no scaling policy {name!r}; there is {ConcurrencyScaling.name}")
