"""Which torch device an engine on a GPU index runs on. Knows it without importing torch."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def resolve_device(configured: str) -> str:
    """`cpu` or `cuda`. "auto" is cuda where there is a driver and torch was built for it."""
    if configured != "auto":
        return configured
    has_driver = Path("/dev/nvidiactl").exists()
    return "cuda" if has_driver and "+cpu" not in metadata.version("torch") else "cpu"


def device_of(kind: str, gpu_index: int) -> str:
    """On the CPU every slot is the same device; a GPU is its own."""
    return "cpu" if kind == "cpu" else f"cuda:{gpu_index}"


def devices(kind: str, gpu_count: int) -> tuple[str, ...]:
    """Every device that wants spares of its own."""
    return tuple(dict.fromkeys(device_of(kind, index) for index in range(gpu_count)))
