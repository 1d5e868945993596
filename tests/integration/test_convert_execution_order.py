"""The order in which a pass meets the weights, found without running layers that are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpu_worker.convert import execution_order
from gpu_worker.convert.execution_order import in_execution_order
from gpu_worker.convert.source import locate
from gpu_worker.convert.weights import load_model
from tests.integration.tiny_models import CONFIGS, write_tiny_model


# Any: transformers' models are untyped.
def _by_a_whole_pass(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patch:
        patch.setattr(execution_order, "_one_of_a_kind", execution_order._every_layer)
        return in_execution_order(model)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_that_of_a_whole_pass(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(locate(write_tiny_model(tmp_path / "source", name)), dtype=torch.float32)
    assert in_execution_order(model) == _by_a_whole_pass(model, monkeypatch)


class _Stack(nn.Module):
    """Layers that are alike, met from the last to the first; each says that it ran."""

    def __init__(self, widens: bool) -> None:
        super().__init__()
        self.ran: list[int] = []
        self.widens = widens
        self.layers = nn.ModuleList(nn.LayerNorm(1) for _ in range(4))
        for number, layer in enumerate(self.layers):
            layer.register_forward_hook(lambda *_, number=number: self.ran.append(number))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
        state = input_ids.float()
        for number in reversed(range(4)):
            state = self.layers[number](state.unsqueeze(-1)).squeeze(-1)
            if self.widens:
                state = torch.cat((state, state), dim=1)
                assert_width(state, 2 ** (4 - number))
        return state


def assert_width(state: torch.Tensor, width: int) -> None:
    if state.shape[1] != width:
        raise RuntimeError(f"{state.shape[1]} columns where {width} belong")


def test_layers_are_met_where_the_pass_comes_to_them() -> None:
    model = _Stack(widens=False)
    assert in_execution_order(model)[::2] == [f"layers.{number}.weight" for number in (3, 2, 1, 0)]
    assert not any("forward" in vars(layer) for layer in model.layers)


def test_a_model_whose_like_layers_answer_differently_is_run_whole() -> None:
    model = _Stack(widens=True)
    names = in_execution_order(model)
    assert names[::2] == [f"layers.{number}.weight" for number in (3, 2, 1, 0)]
    # Once in vain: the answer of the first had the wrong width.
    assert model.ran[-4:] == [3, 2, 1, 0]
