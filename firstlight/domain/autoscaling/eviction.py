"""What goes first when room is needed in a DRAM pool or an SSD cache: least to lose by the byte.

The loss is what bringing it back takes, times how likely that is to be wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The weight of what nobody has said anything of: all alike, they go as by cost and last use alone.
UNKNOWN_NEED = 0.5
# Nothing is quite impossible: of two that nobody is likely to want, the cheaper one still goes first.
LEAST_NEED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One thing that holds room. `need`: how likely it is wanted soon, 0 to 1; None: nobody knows."""

    key: str
    size_bytes: int
    bring_back_s: float
    need: float | None = None
    last_used_s: float = 0.0


def loss_per_byte(*, bring_back_s: float, size_bytes: int, need: float | None = None) -> float:
    """Expected seconds of waiting that each byte of it saves by staying."""
    weight = UNKNOWN_NEED if need is None else min(1.0, max(LEAST_NEED, need))
    return bring_back_s * weight / max(size_bytes, 1)


def eviction_order(residents: Sequence[Resident]) -> tuple[Resident, ...]:
    """First to go first; of equals the one used longest ago, then by key."""
    return tuple(
        sorted(
            residents,
            key=lambda one: (
                loss_per_byte(bring_back_s=one.bring_back_s, size_bytes=one.size_bytes, need=one.need),
                one.last_used_s,
                one.key,
            ),
        )
    )


def make_room(residents: Sequence[Resident], *, bytes_wanted: int) -> tuple[Resident, ...] | None:
    """Who goes so that `bytes_wanted` are free, less those that turn out not to be needed; None: too few."""
    chosen: list[Resident] = []
    freed = 0
    for one in eviction_order(residents):
        if freed >= bytes_wanted:
            break
        chosen.append(one)
        freed += one.size_bytes
    if freed < bytes_wanted:
        return None
    for one in reversed(tuple(chosen)):
        if freed - one.size_bytes >= bytes_wanted:
            chosen.remove(one)
            freed -= one.size_bytes
    return tuple(chosen)
