"""Every promised architecture: bound without a copy, and scoring exactly as transformers itself does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpu_worker.engine.architectures import MODEL_TYPES
from gpu_worker.engine.attention import Span, attending
from gpu_worker.engine.kv_cache import KeyValueCache
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from tests.integration.tiny_models import CONFIGS, write_tiny_model

PROMPT = [1, 5, 9, 33, 60, 2, 8, 8, 17, 90, 41, 3]
OTHER = [4, 4, 20, 71]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Skeleton]:
    directory = write_tiny_model(tmp_path_factory.mktemp("tiny"), request.param)
    reference = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="sdpa" if "gemma2" not in request.param else "eager",
    ).eval()
    skeleton = build_skeleton(Path(directory), dtype=torch.float32)
    tensors = dict(reference.state_dict())
    skeleton.bind(tensors)
    for name, tensor in skeleton.model.state_dict().items():
        assert tensor.data_ptr() == tensors[name].data_ptr()
    return reference, skeleton


def reference_logits(reference: Any, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = reference(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
    return logits


def ragged_logits(skeleton: Skeleton, parts: list[tuple[KeyValueCache, list[int]]]) -> torch.Tensor:
    spans, tokens, positions = [], [], []
    for cache, ids in parts:
        spans.append(Span(cache=cache, offset=len(tokens), length=len(ids)))
        positions += range(cache.length, cache.length + len(ids))
        tokens += ids
    with attending(spans):
        return skeleton.logits(torch.tensor(tokens), torch.tensor(positions), torch.arange(len(tokens)))


def test_every_architecture_is_covered() -> None:
    assert {name.split()[0] for name in CONFIGS} == set(MODEL_TYPES)


def test_prefill_equals_transformers(pair: tuple[Any, Skeleton]) -> None:
    reference, skeleton = pair
    ours = ragged_logits(skeleton, [(KeyValueCache(), PROMPT)])
    theirs = reference_logits(reference, PROMPT)
    windowed = getattr(reference.config, "sliding_window", None) is not None
    if windowed or getattr(reference.config, "attn_logit_softcapping", None):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(ours, theirs)


def test_chunks_decodes_and_neighbours_change_nothing(pair: tuple[Any, Skeleton]) -> None:
    reference, skeleton = pair
    expected, expected_other = reference_logits(reference, PROMPT), reference_logits(reference, OTHER)
    mine, other = KeyValueCache(), KeyValueCache()
    first = ragged_logits(skeleton, [(mine, PROMPT[:5])])
    second = ragged_logits(skeleton, [(other, OTHER[:3]), (mine, PROMPT[5:11])])
    third = ragged_logits(skeleton, [(mine, PROMPT[11:]), (other, OTHER[3:])])
    seen = torch.cat([first, second[3:], third[:1]])
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat([second[:3], third[1:]]), expected_other, rtol=1e-4, atol=1e-4)
