"""Limits of keys, on a clock of the test's own."""

from __future__ import annotations

from api.auth import Grant
from api.key_limits import KeyLimits


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_minutes_requests_pass_and_then_one_at_a_time() -> None:
    clock = Clock()
    limits = KeyLimits(now_s=clock)
    grant = Grant(key_id="key-1", scope="inference", requests_per_minute=6)
    for left in (5, 4, 3, 2, 1, 0):
        assert limits.enter(grant).remaining == left
    refused = limits.enter(grant)
    assert refused.refusal is not None and refused.retry_after_s == 10.0
    clock.now_s += 10.0
    assert limits.enter(grant).refusal is None
    assert limits.enter(grant).refusal is not None
    clock.now_s += 3600.0
    assert limits.enter(grant).remaining == 5


def test_over_any_minute_at_most_twice_the_rate_passes() -> None:
    clock = Clock()
    limits = KeyLimits(now_s=clock)
    grant = Grant(key_id="key-1", scope="inference", requests_per_minute=60)
    passed = 0
    for _ in range(600):
        passed += limits.enter(grant).refusal is None
        clock.now_s += 0.1
    assert 60 <= passed <= 120


def test_so_many_at_once_and_room_again_when_one_leaves() -> None:
    limits = KeyLimits(now_s=Clock())
    grant = Grant(key_id="key-1", scope="inference", max_concurrent=2)
    assert limits.enter(grant).refusal is None
    assert limits.enter(grant).refusal is None
    assert limits.enter(grant).refusal is not None
    assert limits.enter(Grant(key_id="key-2", scope="inference", max_concurrent=1)).refusal is None
    limits.leave(grant)
    assert limits.enter(grant).refusal is None


def test_a_request_refused_for_the_others_beside_it_costs_nothing_of_the_minute() -> None:
    limits = KeyLimits(now_s=Clock())
    grant = Grant(key_id="key-1", scope="inference", requests_per_minute=2, max_concurrent=1)
    assert limits.enter(grant).remaining == 1
    assert limits.enter(grant).remaining is None
    limits.leave(grant)
    assert limits.enter(grant).remaining == 0
