"""The loader's benchmark runs by its own command, measures what it says, and tells what it could not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import loader_page_cache as page_cache
from benchmarks.loader_figures import Measured, paired, summarise
from benchmarks.loader_limit import Limit
from benchmarks.loader_model import shape_for
from benchmarks.loader_rounds import LimitTrial, Trial, rotated
from benchmarks.loader_trial import Taken, touch
from benchmarks.loader_ways import all_ways
from benchmarks.report import Report

WAYS = "store-ssd-model,store-dram-model,safetensors-load-file"


@pytest.mark.slow
def test_a_quick_run_writes_a_report_and_leaves_nothing(tmp_path: Path) -> None:
    report, directory = tmp_path / "report.json", tmp_path / "files"
    command = [sys.executable, "-m", "benchmarks.loader", "--quick", "--rounds", "1", "--size-gib", "0.03"]
    command += ["--json", str(report), "--directory", str(directory), "--only", WAYS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    # 1 says that a figure misses its bound, which figures of so small a file may.
    assert done.returncode in (0, 1), done.stderr
    assert report.exists(), done.stderr
    body = json.loads(report.read_text())
    measured = {(trial["way"], trial["state"]) for trial in body["trials"]}
    assert measured >= {
        ("limit", "cold"),
        ("store-ssd-model", "cold"),
        ("safetensors-load-file", "cold"),
        ("safetensors-load-file", "warm"),
        ("store-dram-model", "warm"),
        ("store-dram-model", "pressed"),
    }
    loads = [trial for trial in body["trials"] if trial["way"] != "limit"]
    assert all(0 < one["returned_s"] <= one["resident_s"] <= one["checked_s"] for one in loads)
    assert all(one["wrong"] == [] for one in loads)
    unmeasured = [figure for figure in body["reach"] if figure["value"] is None]
    assert all(figure["holds"] is None and figure["why"] for figure in unmeasured)
    assert any(figure["name"].startswith("remote") for figure in unmeasured)
    assert not (directory / "hugging-face").exists()


def test_a_peer_that_is_not_there_is_said_to_be_missing() -> None:
    way = all_ways()["tensorizer"]
    missing = type(way)(
        name="x", label="X", prepare=way.prepare, reads=way.reads, package="no-such-loader-anywhere"
    )
    assert missing.missing == "no-such-loader-anywhere"


def test_the_page_cache_is_dropped_and_filled_and_both_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "bytes"
    file.write_bytes(os.urandom(3 << 20))
    page_cache.warm([file])
    assert page_cache.resident_share([file]) == 1.0
    try:
        page_cache.drop([file])
    except page_cache.PageCacheUnwilling:
        pytest.skip("this file system keeps its pages: memory is where it lives")
    assert page_cache.resident_share([file]) == 0.0


@pytest.mark.parametrize("size_bytes", [32 << 20, 512 << 20, 2_576_980_377, 16 << 30])
def test_the_model_has_the_size_that_was_asked_for(size_bytes: int) -> None:
    shape = shape_for(size_bytes)
    made = shape.embedding_bytes + shape.layers * shape.layer_bytes
    assert abs(made - size_bytes) < 0.05 * size_bytes
    assert shape.layers >= 12


def test_every_way_goes_first_once() -> None:
    ways = list(all_ways().values())
    assert {rotated(ways, number)[0].name for number in range(len(ways))} == set(all_ways())
    assert all(len(rotated(ways, number)) == len(ways) for number in range(3))


def test_touching_reads_a_byte_of_every_page() -> None:
    pages = torch.zeros(5, 4096, dtype=torch.uint8)
    pages[:, 0] = 1
    assert touch({"a": pages, "b": torch.empty(0), "c": pages[0]}) == 6


def test_ratios_are_of_the_same_round() -> None:
    assert paired({0: 4.0, 1: 9.0, 2: 5.0}, {1: 3.0, 0: 2.0}) == [2.0, 3.0]


def _trial(way: str, state: str, number: int, seconds: float) -> Trial:
    taken = Taken(
        returned_s=seconds,
        resident_s=2 * seconds,
        checked_s=3 * seconds,
        returned_cpu_s=0.01,
        checksum_cpu_s=0.004,
        resident_cpu_s=0.02,
        private_bytes=0,
        shared_bytes=1,
        peak_bytes=2,
        wrong=(),
    )
    return Trial(way, state, number, taken)


def test_a_loader_slower_than_its_bounds_is_not_said_to_hold() -> None:
    """The device reads at 1 GB/s and so does the store in even rounds, at half of it in the others."""
    report = Report("loader")
    measured = Measured(all_ways(), size_bytes=10**9, read_bytes=10**9)
    for number in range(5):
        measured.limits.append(LimitTrial(number, 1e9, 0.0))
        measured.trials.append(_trial("store-ssd-model", "cold", number, 2.0 if number % 2 else 1.0))
        measured.trials.append(_trial("torch-load", "cold", number, 1.5))
        measured.trials.append(_trial("store-dram-model", "warm", number, 0.02))
        measured.trials.append(_trial("torch-load", "warm", number, 0.06))
        measured.trials.append(_trial("store-dram-model", "pressed", number, 0.5))
    summarise(report, measured, Limit(None, "a test"))
    verdicts = {figure.name.split(":")[0]: figure.holds for figure in report.reach}
    assert verdicts == {
        "cold SSD → returned, rate / the limit (not fio)": True,
        "cold SSD → returned, CPU besides checksums": True,
        "cold SSD → resident": True,
        "DRAM → bound model, returned": False,
        "DRAM → bound model, checksummed": True,
        "DRAM → bound model, checksummed, under memory pressure / before": False,
    }
    assert report.has_failed
    by_name = {figure.name: figure for figure in report.reach}
    assert by_name["DRAM → bound model, returned"].value == pytest.approx(20)
    times = by_name["DRAM → bound model, returned: torch.load / ours"]
    assert times.value == pytest.approx(3) and times.holds is False
