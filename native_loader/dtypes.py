"""The element types of a checkpoint: those of safetensors under the same names, and two more complex ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from firstlight.domain.errors import AttachFailed, SourceUnsupported

if TYPE_CHECKING:
    import torch

BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C32": 32, "C64": 64, "C128": 128,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of one element. Types of less than a byte are packed, and only contiguous."""

SAFETENSORS = frozenset(BITS) - {"C32", "C128"}
"""Those that a safetensors file may have."""

_TORCH_NAMES: dict[str, str] = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32",
    "I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32",
    "F64": "float64", "C32": "complex32", "C64": "complex64", "C128": "complex128",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}  # fmt: skip
_NAMES = {torch_name: name for name, torch_name in _TORCH_NAMES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """Raises: AttachFailed for a type this torch does not have (the 6-bit ones: none has)."""
    import torch

    found = getattr(torch, _TORCH_NAMES.get(name, ""), None)
    if not isinstance(found, torch.dtype):
        raise AttachFailed(f"torch {torch.__version__} has no type for {name}", dtype=name)
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """Raises: SourceUnsupported for a type outside of the format (quantized ones)."""
    name = _NAMES.get(str(dtype).removeprefix("torch."))
    if name is None:
        raise SourceUnsupported(f"tensors of {dtype} cannot be stored in a checkpoint", dtype=str(dtype))
    return name


def is_packed(name: str) -> bool:
    """Whether several elements share a byte."""
    return BITS[name] < 8
