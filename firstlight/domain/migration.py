"""What a live migration of one request costs, and how its KV cache had best travel. Pure functions.

time(tokens) = a·(t_in + t_out) + b, fitted to observed moves (ServerlessLLM, OSDI'24, section 6.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from firstlight.domain.errors import InvalidEstimate
from firstlight.domain.robust_line import fit_line

# Beyond this the oldest observations say little of what the machines are like now.
OBSERVATIONS_AT_MOST = 64


class Transfer(StrEnum):
    """How the destination gets a request's KV cache.

    EXACT sends the cache itself: what the destination goes on with is bit for bit what the source had. TOKENS
    sends token ids and has the cache computed anew, which may round differently and change a near-tie. FAST
    takes whichever is sooner, request by request.
    """

    EXACT = "exact"
    TOKENS = "tokens"
    FAST = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What sending and computing cost between two engines."""

    bandwidth_bytes_per_s: float
    prefill_tokens_per_s: float


# Ten-gigabit Ethernet; a small model on one core, which is where sending wins soonest.
PRIOR_LINK = Link(bandwidth_bytes_per_s=1.0e9, prefill_tokens_per_s=300.0)


def choose_transfer(policy: Transfer, *, tokens: int, cache_bytes: int, link: Link) -> Transfer:
    """EXACT or TOKENS for one request. Under EXACT nothing is chosen that can change a token.

    Raises: InvalidEstimate for a link without meaning.
    """
    if policy is not Transfer.FAST:
        return policy
    if link.bandwidth_bytes_per_s <= 0 or link.prefill_tokens_per_s <= 0:
        raise InvalidEstimate(f"a link needs positive rates, not {link}")
    send_s = cache_bytes / link.bandwidth_bytes_per_s
    compute_s = tokens / link.prefill_tokens_per_s
    return Transfer.TOKENS if compute_s < send_s else Transfer.EXACT


@dataclass(frozen=True, slots=True)
class MoveObservation:
    """Requests that were handed over together, or one: all their tokens, and seconds until the last was."""

    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MoveModel:
    """`seconds(tokens) = seconds_per_token · tokens + overhead_s`."""

    seconds_per_token: float
    overhead_s: float
    observations: int = 0

    def seconds(self, tokens: int) -> float:
        """Raises: InvalidEstimate for fewer than no tokens."""
        if tokens < 0:
            raise InvalidEstimate(f"a request of {tokens} tokens cannot move")
        return self.seconds_per_token * tokens + self.overhead_s


PRIOR_MOVE = MoveModel(seconds_per_token=1e-4, overhead_s=0.05)


def fit_move(observations: Sequence[MoveObservation], *, prior: MoveModel = PRIOR_MOVE) -> MoveModel:
    """The line through the latest observations, robust to outliers.

    Lengths that are all alike tell of the overhead alone, beside the prior's slope as far as it fits in.
    """
    latest = [one for one in observations if one.seconds >= 0][-OBSERVATIONS_AT_MOST:]
    if not latest:
        return prior
    line = fit_line([(float(one.tokens), one.seconds) for one in latest])
    if line is not None:
        return MoveModel(line.slope, line.intercept, len(latest))
    per_token = [one.seconds / one.tokens for one in latest if one.tokens > 0]
    slope = min([prior.seconds_per_token, *([median(per_token)] if per_token else [])])
    overhead_s = max(0.0, median(one.seconds - slope * one.tokens for one in latest))
    return MoveModel(seconds_per_token=slope, overhead_s=overhead_s, observations=len(latest))
