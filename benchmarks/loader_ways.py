"""Every way of loading the same weights that is measured: ours, and the peers'.

A way is prepared (imports, and what a waiting process would have at hand) and then called once, timed, in a
process of its own. The call answers the tensors by name, or the model that has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Union

from benchmarks.loader_files import BenchmarkFiles

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
# A state dict, or a module, whose state dict is made once the clock has stopped.
Loaded = Union[Tensors, "torch.nn.Module"]
Load = Callable[[], Loaded]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a way may use: the files, and the address file of a running store."""

    files: BenchmarkFiles
    store: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """`package` must be installed; `reads` are the files it may find in the page cache.

    `store` is what the running store holds before: nothing in DRAM ("ssd"), the checkpoint ("dram"), or None
    for a way that needs no store. `is_ours` tells Firstlight's ways from peers'.
    """

    name: str
    label: str
    prepare: Callable[[Setting], Load]
    reads: Callable[[BenchmarkFiles], list[Path]]
    package: str | None = None
    store: str | None = None
    is_ours: bool = False
    is_cold: bool = True
    is_warm: bool = True

    @property
    def missing(self) -> str | None:
        """The package that would have to be installed, or None."""
        if self.package is None:
            return None
        try:
            version(self.package)
        except PackageNotFoundError:
            return self.package
        return None

    @property
    def title(self) -> str:
        """Its label with the version that is measured."""
        return self.label if self.package is None or self.missing else f"{self.label} {version(self.package)}"


def way_named(name: str) -> Way:
    """One of the report's, or of the ablation's."""
    from benchmarks.loader_ablation import WAYS as ABLATION

    return (all_ways() | {way.name: way for way in ABLATION})[name]


def all_ways() -> dict[str, Way]:
    """By name, in the order of the report."""
    from benchmarks.loader_own import WAYS as OURS
    from benchmarks.loader_peers import WAYS as PEERS

    return {way.name: way for way in (*OURS, *PEERS)}
