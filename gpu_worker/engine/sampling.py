"""Choosing the next token: a pure function of scores, settings, history and position.

The only randomness are numbers derived from (seed, position, token id). A stream that is resumed elsewhere,
retried or run among other neighbours therefore draws the same numbers, and nothing has to be carried along.

A token is drawn as the winner of a race: each runs for an exponential time of its own, the likelier the
faster. Where scores are a hair off (another device, another batch), the winner changes only if two tokens
were within that hair of each other; an inverted cumulative distribution would step over dozens of unlikely
ones.
Source: the Gumbel-max trick; Maddison, Tarlow, Minka, "A* Sampling" (2014).
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

# A nucleus is mostly found among this many; only a flatter distribution is sorted whole.
_NUCLEUS_CANDIDATES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose. The defaults are greedy with everything off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


GREEDY = Sampling()


def race_times(count: int, *, seed: int, position: int) -> npt.NDArray[np.float64]:
    """`count` draws of the exponential distribution with mean 1, fixed by the arguments on every machine.

    Entry i is token i's. Raw words of the generator: what NumPy makes of them may change between versions.
    """
    key = hashlib.blake2b(struct.pack("<QQ", seed % 2**64, position), digest_size=16).digest()
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)
    # The middles of 2**53 equal parts of (0, 1): never 0, whose time would be infinite.
    times: npt.NDArray[np.float64] = -np.log(((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
    return times


def choose(
    scores: torch.Tensor,
    sampling: Sampling,
    *,
    position: int,
    prompt: Iterable[int],
    generated: Sequence[int],
    allowed: torch.Tensor | None = None,
) -> int:
    """The next token's id. `scores`: (vocabulary,) float32 on the CPU; left as it is.

    `allowed`: (vocabulary,) bool, at least one of them true; None: all.
    """
    scores = _biased(_penalized(scores, sampling, prompt, generated), sampling.logit_bias)
    if allowed is not None:
        # Last: no bias brings back what a grammar forbids.
        scores = scores.masked_fill(~allowed, -torch.inf)
    if sampling.temperature <= 0:
        return int(scores.argmax())
    probabilities = torch.softmax(scores.double() / sampling.temperature, dim=-1)
    kept = _filtered(probabilities, sampling)
    return _winner(kept, race_times(len(kept), seed=sampling.seed, position=position))


def top_logprobs(
    scores: torch.Tensor, token_id: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log-probability of `token_id`, and the `count` likeliest tokens with theirs."""
    logprobs = torch.log_softmax(scores.float(), dim=-1)
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return float(logprobs[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _penalized(
    scores: torch.Tensor, sampling: Sampling, prompt: Iterable[int], generated: Sequence[int]
) -> torch.Tensor:
    """Repetition penalty over prompt and output (Keskar et al. 2019), the other two over output alone."""
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *generated}), dtype=torch.int64)
        before = scores[seen]
        penalty = sampling.repetition_penalty
        scores = scores.index_put((seen,), torch.where(before > 0, before / penalty, before * penalty))
    if generated and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(generated)
        seen = torch.tensor(list(counts), dtype=torch.int64)
        times = torch.tensor(list(counts.values()), dtype=scores.dtype)
        loss = sampling.presence_penalty + sampling.frequency_penalty * times
        scores = scores.index_put((seen,), scores[seen] - loss)
    return scores


def _biased(scores: torch.Tensor, bias: Mapping[int, float]) -> torch.Tensor:
    if not bias:
        return scores
    ids = torch.tensor(list(bias), dtype=torch.int64)
    return scores.index_put((ids,), scores[ids] + torch.tensor(list(bias.values()), dtype=scores.dtype))


def _filtered(probabilities: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Zero what min_p, top_k and top_p exclude, in that order; the likeliest token always stays."""
    kept = probabilities
    if sampling.min_p > 0:
        kept = kept.where(kept >= sampling.min_p * kept.max(), 0.0)
    if 0 < sampling.top_k < len(kept):
        kept = _only(kept, kept.topk(sampling.top_k).indices)
    if 0 < sampling.top_p < 1:
        kept = _only(kept, _nucleus(kept, sampling.top_p))
    return kept


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Ids of the fewest tokens that together hold `top_p` of the mass."""
    wanted = top_p * float(probabilities.sum())
    for candidates in (min(_NUCLEUS_CANDIDATES, len(probabilities)), len(probabilities)):
        values, ids = probabilities.topk(candidates)
        mass = values.cumsum(0)
        if float(mass[-1]) >= wanted:
            break
    # A token belongs if the mass before it has not reached the share yet.
    return ids[: max(1, int((mass - values < wanted).sum()))]


def _only(probabilities: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(probabilities).index_copy(0, ids, probabilities[ids])


def _winner(probabilities: torch.Tensor, times: npt.NDArray[np.float64]) -> int:
    """Who is first: time over speed is least. A probability of zero never arrives."""
    return int((probabilities / torch.from_numpy(times)).argmax())
