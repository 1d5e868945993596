"""Limits of each key, kept in this process's memory: so many requests a minute, so many at once.

A bucket of a minute's requests that fills up evenly: a burst of that many passes, then one at a time as
the minute goes on. Every API process counts for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from api.auth import Grant

# Keys that are not used fill up; so many of them are forgotten together.
FORGET_ABOVE = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float
    running: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a key stands after a request was let in or turned away."""

    refusal: str | None = None
    retry_after_s: float = 0.0
    remaining: int | None = None


class KeyLimits:
    """`enter` and `leave` belong together, unless `enter` has refused."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._buckets: dict[str, _Bucket] = {}

    def enter(self, grant: Grant) -> Standing:
        """Count one request in, or say why not."""
        bucket = self._filled(grant)
        if grant.max_concurrent is not None and bucket.running >= grant.max_concurrent:
            return Standing(
                refusal=f"this API key may have {grant.max_concurrent} requests at once", retry_after_s=1.0
            )
        rate = grant.requests_per_minute
        if rate is None:
            bucket.running += 1
            return Standing()
        if bucket.left < 1.0:
            return Standing(
                refusal=f"this API key may send {rate} requests a minute",
                retry_after_s=(1.0 - bucket.left) * 60.0 / rate,
                remaining=0,
            )
        bucket.left -= 1.0
        bucket.running += 1
        return Standing(remaining=int(bucket.left))

    def leave(self, grant: Grant) -> None:
        if (bucket := self._buckets.get(grant.key_id)) is not None:
            bucket.running -= 1

    def _filled(self, grant: Grant) -> _Bucket:
        now_s = self._now_s()
        bucket = self._buckets.get(grant.key_id)
        if bucket is None:
            self._forget(now_s)
            bucket = self._buckets[grant.key_id] = _Bucket(float(grant.requests_per_minute or 0), now_s)
            return bucket
        rate = grant.requests_per_minute
        if rate is not None:
            bucket.left = min(float(rate), bucket.left + (now_s - bucket.at_s) * rate / 60.0)
        bucket.at_s = now_s
        return bucket

    def _forget(self, now_s: float) -> None:
        """A key that has been silent for a minute has a full bucket, which is what a new one gets."""
        if len(self._buckets) < FORGET_ABOVE:
            return
        for key_id, bucket in list(self._buckets.items()):
            if not bucket.running and now_s - bucket.at_s > 60.0:
                del self._buckets[key_id]
