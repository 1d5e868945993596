"""Turns a model as it was published into a checkpoint in Firstlight's own format.

Runs as a process of its own (`python -m gpu_worker.convert`): it needs torch, and memory for the model.
Promises: never runs code or pickle of a source; what it cannot serve exactly it refuses, and says why.
`estimate_size` and `locate` need no torch.
"""

from gpu_worker.convert.size import estimate_size
from gpu_worker.convert.source import ModelSource, locate

__all__ = ["ModelSource", "estimate_size", "locate"]
