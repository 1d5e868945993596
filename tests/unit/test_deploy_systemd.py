"""The systemd units: read by systemd itself where it is installed, and by our own laws."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from firstlight.settings import Settings
from tests.unit.deploy_files import DEPLOY, INSTALLED_DOCS, ROOT, VARIABLES

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
# Of 100, by systemd's own count; what is left is the network and the file system of the state.
MOST_EXPOSED = 35


def lines(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def test_there_is_a_unit_for_every_role() -> None:
    assert [unit.stem for unit in UNITS] == [
        "firstlight-api",
        "firstlight-control-worker",
        "firstlight-gpu-host",
        "firstlight-upgrade-database",
    ]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.stem))
def test_a_unit_is_locked_down_and_starts_again(unit: Path) -> None:
    said = lines(unit)
    assert said["User"] == ["firstlight"] and said["ProtectSystem"] == ["strict"]
    assert said["NoNewPrivileges"] == ["yes"] and said["CapabilityBoundingSet"] == [""]
    if said["Type"] == ["exec"]:
        assert said["Restart"] == ["always"] and said["KillSignal"] == ["SIGTERM"]
        assert float(said["TimeoutStopSec"][0]) > Settings.model_fields["drain_on_stop_s"].default
    named = set(re.findall(r"FIRSTLIGHT_[A-Z_]+", unit.read_text()))
    assert named <= VARIABLES


def test_a_gpu_host_that_is_stopped_drains_first() -> None:
    said = lines(DEPLOY / "systemd" / "firstlight-gpu-host.service")
    [drain] = [one for one in said["Environment"] if "DRAIN_ON_STOP_S" in one]
    # Engines and store must not be told before everything has moved.
    assert said["KillMode"] == ["mixed"]
    assert float(said["TimeoutStopSec"][0]) >= float(drain.rpartition("=")[2]) + 20
    assert said["LimitMEMLOCK"] == ["infinity"]


def test_the_example_of_an_environment_names_settings() -> None:
    text = (DEPLOY / "systemd" / "firstlight.env.example").read_text()
    assert set(re.findall(r"FIRSTLIGHT_[A-Z_]+(?==)", text)) <= VARIABLES


def test_an_installation_has_the_pages_that_units_name(tmp_path: Path) -> None:
    """The step of the page that puts them there, carried out below another root."""
    page = (ROOT / "docs" / "operators" / "install.md").read_text()
    [step] = [line for line in page.splitlines() if line.startswith("sudo ") and INSTALLED_DOCS in line]
    command = step.replace("sudo ", "").replace("/opt/", f"{tmp_path}/opt/")
    for _ in ("installed", "upgraded"):
        subprocess.run(["bash", "-euc", command], cwd=ROOT, check=True)
    for unit in UNITS:
        [named] = lines(unit)["Documentation"]
        assert named.startswith(f"file:{INSTALLED_DOCS}/")
        assert (tmp_path / named.removeprefix("file:/")).is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit.name
        # The program is where an installation puts it, and this is none.
        copy.write_text(re.sub(r"(?m)^(Exec\w+=)\S+", r"\1/bin/true", unit.read_text()))
        copies.append(str(copy))
    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    # What it says of other units of this machine is theirs.
    assert [line for line in done.stderr.splitlines() if "firstlight" in line] == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", *copies],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
