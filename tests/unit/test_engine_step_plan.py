"""Laws of the step plan: nobody starves, and a prompt is always cut in the same places."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.engine.step_plan import plan_step


@dataclass
class Work:
    cached_tokens: int
    pending_tokens: int
    cuts: list[int] = field(default_factory=list)

    def advance(self, tokens: int) -> None:
        self.cached_tokens += tokens
        self.pending_tokens -= tokens


def run_alone(prompt: int, chunk: int) -> list[int]:
    work, cuts = Work(0, prompt), []
    while work.pending_tokens:
        ((_, tokens),) = plan_step([work], chunk_tokens=chunk)
        work.advance(tokens)
        cuts.append(work.cached_tokens)
    return cuts


prompts = st.lists(st.integers(1, 300), min_size=1, max_size=6)


@given(prompts, st.integers(1, 64))
def test_all_are_done_and_cut_as_if_alone(lengths: list[int], chunk: int) -> None:
    works = [Work(0, length) for length in lengths]
    while running := [work for work in works if work.pending_tokens]:
        plan = plan_step(running, chunk_tokens=chunk)
        assert plan, "a pass must get somewhere"
        for index, tokens in plan:
            running[index].advance(tokens)
            running[index].cuts.append(running[index].cached_tokens)
    assert [work.cuts for work in works] == [run_alone(length, chunk) for length in lengths]


@given(prompts, st.integers(2, 64), st.integers(1, 5))
def test_decoding_goes_on_beside_any_prefill(lengths: list[int], chunk: int, decoding: int) -> None:
    running = [Work(0, length + 1) for length in lengths] + [Work(40, 1) for _ in range(decoding)]
    plan = dict(plan_step(running, chunk_tokens=chunk))
    assert all(plan[index] == 1 for index in range(len(lengths), len(running)))
    assert sum(plan[index] for index in plan if running[index].pending_tokens > 1) <= chunk


def test_the_oldest_prompt_goes_first() -> None:
    assert plan_step([Work(0, 100), Work(0, 5)], chunk_tokens=32) == [(0, 32)]
    assert plan_step([Work(96, 4), Work(0, 5)], chunk_tokens=32) == [(0, 4), (1, 5)]
