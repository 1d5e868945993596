"""A model without weights, built ahead of need, and the binding of weights into it without a copy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from firstlight.domain.embedding import EMBEDDING_FILE, Embedding, parse_embedding
from firstlight.domain.errors import AttachFailed, SourceUnsupported
from gpu_worker.engine import architectures, attention
from gpu_worker.engine.bound_ahead import BoundAhead
from gpu_worker.engine.even_rows import make_even

_building = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a tensor of the state dict lives."""

    module: nn.Module
    attribute: str
    shape: torch.Size
    is_parameter: bool


class Skeleton:
    """A model whose weights are on the meta device; `bind` makes it whole, once.

    `embedding` is None for one that only generates; one that only embeds has no head.
    """

    # Any: transformers' models are untyped.
    def __init__(
        self,
        model: Any,
        config: Mapping[str, Any],
        eos_token_ids: frozenset[int],
        embedding: Embedding | None = None,
    ) -> None:
        self.model = model
        self.embedding = embedding
        self.has_head = embedding is None or embedding.generates
        self.eos_token_ids = eos_token_ids
        self.context_length = architectures.context_length(config)
        self.vocabulary_size = int(model.config.vocab_size)
        self.layers = int(model.config.get_text_config().num_hidden_layers)
        self._slots = _slots_of(model)

    def bind(self, tensors: Mapping[str, torch.Tensor]) -> int:
        """Give every parameter and persistent buffer its tensor, as it is: no copy. Their bytes, ties once.

        Raises: AttachFailed when names or shapes are not this architecture's.
        """
        self._check({name: tensor.shape for name, tensor in tensors.items()})
        bound: dict[int, nn.Parameter] = {}
        for name, slot in self._slots.items():
            tensor = tensors[name]
            if not slot.is_parameter:
                slot.module._buffers[slot.attribute] = tensor
                continue
            # Tied names share one address, and must go on sharing one parameter.
            parameter = bound.setdefault(tensor.data_ptr(), nn.Parameter(tensor, requires_grad=False))
            slot.module._parameters[slot.attribute] = parameter
        return sum(parameter.nbytes for parameter in bound.values())

    def bind_ahead(self, ahead: BoundAhead) -> None:
        """Take tensors that have no memory yet: `ahead.fill` makes the model whole. Raises: AttachFailed."""
        self._check(ahead.shapes)
        for name, slot in self._slots.items():
            if slot.is_parameter:
                parameter = ahead.tensors[name]
                assert isinstance(parameter, nn.Parameter), "made as parameters, ties once"
                slot.module._parameters[slot.attribute] = parameter
            else:
                slot.module._buffers[slot.attribute] = ahead.tensors[name]

    def _check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if unlike := set(shapes) ^ set(self._slots):
            some = ", ".join(sorted(unlike)[:3])
            raise AttachFailed(f"{len(unlike)} tensors fit no parameter or are missing, such as {some}")
        for name, slot in self._slots.items():
            if tuple(shapes[name]) != tuple(slot.shape):
                raise AttachFailed(f"{name} has shape {tuple(shapes[name])}, not {tuple(slot.shape)}")

    def logits(self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) behind the tokens at `rows` of the flat batch. Call inside `attending`.

        token_ids, positions: (T,) int64; rows: (R,) int64, none of them for a model without a head.
        """
        kept = {"logits_to_keep": rows} if self.has_head else {}
        with torch.inference_mode():
            output = self.model(
                input_ids=token_ids[None], position_ids=positions[None], use_cache=False, **kept
            )
        if not self.has_head:
            return torch.empty((0, self.vocabulary_size))
        scores: torch.Tensor = output.logits[0]
        return scores

    @contextmanager
    def keeping_states(self) -> Iterator[list[torch.Tensor]]:
        """(T, hidden) of every pass inside, as they leave the final norm, before any head."""
        found: list[torch.Tensor] = []
        body = self.model.base_model
        # One pass for streams and embeddings alike: a head hands on its scores only, so it is asked below it.
        hook = body.register_forward_hook(
            lambda _module, _inputs, out: found.append(out.last_hidden_state[0])
        )
        try:
            yield found
        finally:
            hook.remove()


def build_skeleton(directory: Path, *, dtype: torch.dtype, device: str = "cpu") -> Skeleton:
    """Read config.json and generation_config.json of `directory` and build the model they describe.

    With embedding.json it embeds, and may have no head.
    Raises: AttachFailed, SourceCorrupt when they cannot be read, SourceUnsupported when it cannot be run.
    """
    try:
        config = json.loads((directory / "config.json").read_text())
        eos_token_ids = read_eos_token_ids(directory, config)
        embedding = read_embedding(directory)
    except (OSError, ValueError) as failure:
        raise AttachFailed(f"cannot read the model's configuration: {failure}") from failure
    architectures.require_supported(config)
    try:
        described = AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
        with _building, _parameters_on_meta(), no_init_weights():
            model = assemble(described, dtype=dtype, has_head=embedding is None or embedding.generates)
    except (ValueError, KeyError, TypeError) as failure:
        raise SourceUnsupported(f"config.json describes no model that can be built: {failure}") from failure
    _move_buffers(model, device)
    make_even(model, device)
    return Skeleton(model, config, eos_token_ids, embedding)


def _move_buffers(model: nn.Module, device: str) -> None:
    """What no checkpoint brings. Not `model.to`: parameters have no bytes to be moved yet."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


# Any: transformers' configurations and models are untyped.
def assemble(described: Any, *, dtype: torch.dtype, has_head: bool = True) -> Any:
    """The model of a transformers configuration, with our attention, ready to infer."""
    attention.register()
    kind = AutoModelForCausalLM if has_head else AutoModel
    return kind.from_config(
        described, dtype=dtype, attn_implementation=attention.NAME, trust_remote_code=False
    ).eval()


def read_eos_token_ids(directory: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """End tokens: generation_config.json's, else config.json's."""
    path = directory / "generation_config.json"
    generation = json.loads(path.read_text()) if path.exists() else {}
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    listed = found if isinstance(found, list) else [found]
    return frozenset(int(token) for token in listed if token is not None)


def read_embedding(directory: Path) -> Embedding | None:
    """How its states become vectors; None where nothing says so. Raises: OSError, SourceCorrupt."""
    path = directory / EMBEDDING_FILE
    return parse_embedding(path.read_bytes()) if path.exists() else None


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside hold no memory; buffers are computed as usual.

    Building all on meta would leave non-persistent buffers (rotary frequencies, embedding scales) empty, and
    recomputing them through a model's weight initialisation overwrites weights as well.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and not param.is_meta:
            module._parameters[name] = nn.Parameter(param.to("meta"), requires_grad=False)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _slots_of(model: nn.Module) -> dict[str, _Slot]:
    """Every name of the runtime state dict, tied ones under each of their names."""
    slots = {}
    for prefix, module in model.named_modules():
        begin = f"{prefix}." if prefix else ""
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                slots[begin + attribute] = _Slot(module, attribute, parameter.shape, True)
        for attribute, buffer in module._buffers.items():
            if buffer is not None and attribute not in module._non_persistent_buffers_set:
                slots[begin + attribute] = _Slot(module, attribute, buffer.shape, False)
    return slots
