"""A request's cache holds exactly what was written, through every growth, and counts only whole passes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine.attention import Span, attending
from gpu_worker.engine.kv_cache import KeyValueCache


@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 100))
def test_it_holds_all_that_was_written(spans: list[int], expected: int) -> None:
    whole = torch.arange(sum(spans) * 2 * 3, dtype=torch.float32).reshape(1, 2, sum(spans), 3)
    cache = KeyValueCache(expected_tokens=expected)
    for length in spans:
        end = cache.length + length
        keys, values = cache.write(0, whole[:, :, cache.length : end], -whole[:, :, cache.length : end])
        assert torch.equal(keys, whole[:, :, :end])
        assert torch.equal(values, -whole[:, :, :end])
        cache.advance(length)
    assert cache.length == sum(spans)


def test_a_failed_pass_leaves_no_trace() -> None:
    cache = KeyValueCache()
    span = Span(cache=cache, offset=0, length=2)
    try:
        with attending([span]):
            cache.write(0, torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
            raise RuntimeError("out of memory")
    except RuntimeError:
        pass
    assert cache.length == 0
