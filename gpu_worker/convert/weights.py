"""Reads a source's weights through transformers, into the layout the model has when it runs."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.utils.quantization_config import GgufConfig

from firstlight.domain.errors import SourceCorrupt
from gpu_worker.convert.sentence_layout import sentence_layout
from gpu_worker.convert.size import estimate_size
from gpu_worker.convert.source import ModelSource
from gpu_worker.engine.architectures import require_supported

# What transformers, safetensors and gguf raise for files that are not what they should be.
_UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, SafetensorError)


# Any: transformers' models are untyped.
def load_model(source: ModelSource, *, dtype: torch.dtype, device: str | None = None) -> Any:
    """The model on the CPU, or `device`, in `dtype`, in evaluation mode. No code of the source runs.

    Raises: SourceCorrupt when weights are unreadable, missing or misshapen; SourceUnsupported.
    """
    estimate_size(source.directory if source.gguf_name is None else source.directory / source.gguf_name)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if source.gguf_name is not None:
        options["gguf_file"] = source.gguf_name
    try:
        config = AutoConfig.from_pretrained(source.directory, **options)
    except _UNREADABLE as failure:
        raise SourceCorrupt(f"the model's configuration cannot be read: {failure}") from failure
    require_supported(config.to_dict())
    if device is not None:
        options["device_map"] = {"": device}
    if source.gguf_name is not None:
        options["quantization_config"] = GgufConfig(dequantize=True)
    kind = AutoModelForCausalLM if has_head(source) else AutoModel
    try:
        model, report = kind.from_pretrained(
            source.directory,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            # Not to accept them, but to name them: see `require_complete`.
            ignore_mismatched_sizes=True,
            **options,
        )
    except _UNREADABLE as failure:
        raise SourceCorrupt(f"the weights cannot be read: {failure}") from failure
    require_complete(report)
    return model.eval()


def has_head(source: ModelSource) -> bool:
    """False for a model that only embeds: its source has no weights to write text with."""
    layout = sentence_layout(source)
    return layout is None or layout.has_head


# Any: transformers' loading report.
def require_complete(report: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers; a model like that must not be served."""
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, report.get(kind) or ())):
            raise SourceCorrupt(f"the weights do not fit the configuration: {kind} {', '.join(found[:3])}")
