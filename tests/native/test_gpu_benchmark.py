"""The benchmark of copies to a GPU runs; over a stand-in of the driver its figures mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.loader_gpu import NotExact, add_to, measure_gpu, why_no_gpu
from benchmarks.loader_limit import Limit
from benchmarks.report import Report
from native_loader import save_checkpoint
from tests.native.cuda_standin.standin import Standin, library


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = {f"layer.{number}": torch.randn(3000, 1000) for number in range(4)}
    save_checkpoint(state, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_every_figure_is_taken_and_nothing_is_left_behind(checkpoint: Path) -> None:
    before = Standin().live
    rounds = measure_gpu(checkpoint, Limit(None), rounds=2, library=library())
    assert len(rounds) == 2
    report = Report("to a GPU")
    add_to(report, rounds)
    assert [figure.bound for figure in report.reach] == [">= 0.95 ×"] * 2
    assert all(figure.value is not None and figure.value > 0 for figure in report.reach)
    assert Standin().live == before


def test_bytes_that_differ_are_no_figure(checkpoint: Path) -> None:
    """A driver that says a copy is done and has moved nothing."""
    with Standin().losing_copies(), pytest.raises(NotExact):
        measure_gpu(checkpoint, Limit(None), rounds=1, library=library())


def test_a_machine_without_a_gpu_says_what_was_done_instead() -> None:
    assert why_no_gpu(library()) == ""
    assert "no GPU here" in why_no_gpu("/nowhere/libcuda.so.1")
    assert "stand-in of the driver" in why_no_gpu("/nowhere/libcuda.so.1")
