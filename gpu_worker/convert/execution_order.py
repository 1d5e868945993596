"""In which order a model's forward pass meets its weights.

One pass tells, and most of its time would go into layers that are all alike: of those only the first is run,
the others are taken to meet theirs in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

# What a model raises that is handed an answer which another of its layers would not have given.
_MISTAKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


# Any: transformers' models are untyped.
def in_execution_order(model: Any, **inputs: torch.Tensor) -> list[str]:
    """Names of the state dict in the order one forward pass meets them; what it does not meet comes last.

    `inputs` of the pass are one token on the CPU unless given.
    """
    given = inputs or {"input_ids": torch.zeros((1, 1), dtype=torch.int64)}
    try:
        owners = _met(model, given, _one_of_a_kind)
    except _MISTAKEN:
        owners = _met(model, given, _every_layer)
    rank = {prefix: index for index, prefix in reversed(list(enumerate(owners)))}
    return sorted(model.state_dict(), key=lambda name: rank.get(name.rpartition(".")[0], len(owners)))


Shortening = Callable[[nn.Module, list[str]], AbstractContextManager[None]]


# Any: see above.
def _met(model: Any, inputs: Mapping[str, torch.Tensor], shortening: Shortening) -> list[str]:
    """Paths of the modules with weights of their own, as often as the pass comes to them."""
    owners: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, prefix=prefix: owners.append(prefix))
        for prefix, module in model.named_modules()
        if module._parameters or module._buffers
    ]
    try:
        with torch.inference_mode(), shortening(model, owners):
            model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return owners


@contextmanager
def _every_layer(_model: nn.Module, _owners: list[str]) -> Iterator[None]:
    yield


@contextmanager
def _one_of_a_kind(model: nn.Module, owners: list[str]) -> Iterator[None]:
    """Of the layers of a list that are alike the first is run; its answer is that of the others."""
    ran: dict[Hashable, tuple[list[str], object]] = {}
    changed: list[nn.Module] = []
    for path, layers in model.named_modules():
        if not isinstance(layers, nn.ModuleList):
            continue
        for name, layer in layers.named_children():
            if "forward" not in vars(layer):  # whoever put one of its own there knows why
                layer.forward = _in_turn(layer, f"{path}.{name}.", (path, _kind(layer)), ran, owners)
                changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def _in_turn(
    layer: nn.Module,
    prefix: str,
    kind: Hashable,
    ran: dict[Hashable, tuple[list[str], object]],
    owners: list[str],
) -> Callable[..., object]:
    original = layer.forward

    def forward(*inputs: object, **named: object) -> object:
        if (known := ran.get(kind)) is not None:
            within, answer = known
            owners.extend(prefix + owner for owner in within)
            return answer
        begin = len(owners)
        answer = original(*inputs, **named)
        ran[kind] = [owner.removeprefix(prefix) for owner in owners[begin:]], answer
        return answer

    return forward


def _kind(layer: nn.Module) -> Hashable:
    """The same for layers of the same classes with the same weights, but for their values."""
    modules = tuple((name, type(module)) for name, module in layer.named_modules())
    weights = [*layer.named_parameters(), *layer.named_buffers()]
    return modules, tuple((name, tensor.shape, tensor.dtype) for name, tensor in weights)
