"""Policies by the names that settings and simulator scenarios use."""

from __future__ import annotations

from firstlight.domain.autoscaling.keep_alive import FixedKeepAlive, HybridHistogram, KeepAlivePolicy
from firstlight.domain.autoscaling.layered import LayeredKeepAlive
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
