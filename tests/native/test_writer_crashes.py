"""A writer that dies, or whose disk fails, at any call it makes leaves all of a checkpoint or nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the fault shim with")
    library = tmp_path_factory.mktemp("shim") / "fault_shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "fault_shim.c", "-ldl"], check=True
    )
    return library


def run(parent: Path, *arguments: str, shim: Path | None = None) -> list[dict[str, Any]]:
    preload = {"LD_PRELOAD": str(shim)} if shim else {}
    done = subprocess.run(
        [sys.executable, str(HERE / "writer_under_faults.py"), str(parent), *arguments],
        env={**os.environ, **preload},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_killed_at_every_call_it_leaves_all_or_nothing(tmp_path: Path, shim: Path) -> None:
    reports = run(tmp_path, "kill", shim=shim)
    assert len(reports) > 20
    for report in reports:
        assert report["outcome"] == "killed", report
        assert report["found"] in ("nothing", "all"), report
        # What is left is hidden, one at most, and goes with the next sweep; then writing succeeds.
        hidden = [name for name in report["left"] if name != "checkpoint"]
        assert len(hidden) <= 1 and all(name.startswith(".checkpoint.partial-") for name in hidden), report
        assert report["swept"] == (["checkpoint"] if report["found"] == "all" else []), report
        assert report["healed"] == "all", report
    found = [report["found"] for report in reports]
    assert "nothing" in found and found == sorted(found, reverse=True), "it appears at one call, and stays"


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_an_error_at_every_call_is_said_and_leaves_nothing(tmp_path: Path, shim: Path, error: str) -> None:
    reports = run(tmp_path, error, shim=shim)
    assert len(reports) > 20
    raised = 0
    for report in reports:
        assert report["outcome"] in ("raised", "written"), report
        # An error after the rename (of the parent's fsync) is said too, of a checkpoint that is all there.
        assert report["found"] in ("nothing", "all"), report
        assert report["found"] == "all" or report["outcome"] == "raised", report
        assert report["left"] == (["checkpoint"] if report["found"] == "all" else []), report
        assert report["healed"] == "all", report
        raised += report["outcome"] == "raised"
    assert raised > 15


def test_an_interrupted_call_is_made_again_or_said(tmp_path: Path, shim: Path) -> None:
    """EINTR at every call: writes go on, and what does not leaves nothing behind."""
    reports = run(tmp_path, "EINTR", shim=shim)
    assert all(report["found"] == "all" or report["outcome"] == "raised" for report in reports)
    assert all(report["left"] == (["checkpoint"] if report["found"] == "all" else []) for report in reports)
    assert all(report["healed"] == "all" for report in reports)
    assert sum(report["outcome"] == "written" for report in reports) > len(reports) // 2


def test_killed_at_random_moments(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    for report in run(tmp_path, "random", str(seed), "25"):
        assert report["found"] in ("nothing", "all"), (seed, report)
        assert report["swept"] == (["checkpoint"] if report["found"] == "all" else []), (seed, report)


def test_what_must_survive_a_loss_of_power_is_on_the_disk_before_the_name(tmp_path: Path, shim: Path) -> None:
    """Every file's bytes, then their names, then the checkpoint's own name."""
    run(tmp_path, "order", shim=shim)
    calls = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    rename = next(i for i, (name, _) in enumerate(calls) if name == "rename")
    written = [path for name, path in calls if name in ("write", "create") and "partial" in path]
    assert {Path(path).name for path in written} == {
        "partition-0.bin",
        "partition-1.bin",
        "config.json",
        "manifest.json",
    }
    synced = []
    for path in sorted(set(written)):
        last_write = max(i for i, call in enumerate(calls) if call in (["write", path], ["create", path]))
        synced.append(next(i for i in range(last_write, len(calls)) if calls[i] == ["fsync", path]))
    directory = calls.index(["fsync", str(Path(written[0]).parent)])
    assert max(synced) < directory < rename
    assert ["fsync", str(tmp_path / "deep")] in calls[rename:]
    assert ["fsync", str(tmp_path)] in calls[:rename], "the folder that was made for it has a name too"
