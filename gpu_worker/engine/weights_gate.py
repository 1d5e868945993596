"""Lets a model compute while its weights still come: each part waits for its own bytes, and for no others.

A decoder layer is one part; so is every module outside of the layers that holds parameters of its own. They
are met in the order in which a load brings them, so that compute follows the bytes. A wait sleeps in the
kernel, and costs no CPU time that the load could use. Once all is there the hooks are gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from torch import nn
from torch.utils.hooks import RemovableHandle

from firstlight.domain.errors import EngineGone
from native_loader import ProgressBoard

# Between two looks at whether the bytes' source is alive: a store that was killed fails no board.
LOOK_S = 0.25


class WeightsGate:
    """The waits of one model; `waited_s` is how long forward passes stood still."""

    def __init__(self, board: ProgressBoard, *, is_source_lost: Callable[[], bool]) -> None:
        self._board = board
        self._is_source_lost = is_source_lost
        self._hooks: list[RemovableHandle] = []
        self.waited_s = 0.0

    @property
    def is_loading(self) -> bool:
        """Whether a pass may have to wait."""
        return not self._board.is_ended

    def install(self, model: nn.Module, needed: Mapping[str, int]) -> None:
        """`needed` tells for each tensor's name how long the load's prefix must be for it to be there."""
        for module, names in parts_of(model):
            prefix_bytes = max((needed[name] for name in names if name in needed), default=0)
            hook = module.register_forward_pre_hook(lambda *_, upto=prefix_bytes: self._before(upto))
            self._hooks.append(hook)

    def wait(self, prefix_bytes: int) -> None:
        """Until so much of the load is there, from any thread. Raises: EngineGone when it will not come."""
        while not self._board.wait_prefix(prefix_bytes, LOOK_S):
            if self._board.has_failed:
                raise EngineGone("the load of this model's weights failed; they are not complete")
            if self._is_source_lost():
                raise EngineGone("the store went away while this model's weights were loaded")

    def _before(self, prefix_bytes: int) -> None:
        if self._board.is_ended and not self._board.has_failed:
            self._remove()
            return
        begun_s = time.monotonic()
        self.wait(prefix_bytes)
        self.waited_s += time.monotonic() - begun_s

    def _remove(self) -> None:
        """From the thread that computes, in the midst of a pass: torch goes through a copy of its hooks."""
        hooks, self._hooks = self._hooks, []
        for hook in hooks:
            hook.remove()


def parts_of(module: nn.Module, prefix: str = "") -> Iterator[tuple[nn.Module, list[str]]]:
    """(module to wait before, names of the tensors it needs), each tensor once, children of lists whole."""
    own = [name for name, _ in _own_tensors(module)]
    if own:
        yield module, [prefix + name for name in own]
    for name, child in module.named_children():
        if isinstance(module, nn.ModuleList):
            yield child, [f"{prefix}{name}.{tensor}" for tensor in _names(child)]
        else:
            yield from parts_of(child, f"{prefix}{name}.")


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, object]]:
    for store in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in store.items() if tensor is not None)


def _names(module: nn.Module) -> list[str]:
    """Of every tensor in it, tied ones under each of their names."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, inner in module.named_modules(remove_duplicate=False)
        for name, _ in _own_tensors(inner)
    ]
