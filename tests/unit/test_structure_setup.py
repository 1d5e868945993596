"""The set-up script, in a checkout of its own and on machines that lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script reads, and nothing more: an installation would fail."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def set_up(checkout: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(checkout / "scripts" / "setup_venv.py"), *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_machine_without_a_compiler_is_told_what_to_install(checkout: Path) -> None:
    done = set_up(checkout, PATH=str(checkout), CXX="")
    assert done.returncode == 1
    assert done.stderr.startswith("firstlight: a C++20 compiler is needed")
    assert "sudo apt install g++" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (checkout / ".venv").exists()


def test_a_stamp_of_the_same_inputs_is_believed_and_of_others_is_not(checkout: Path) -> None:
    program = "import setup_venv as s, json; s.VENV.mkdir(exist_ok=True); s.STAMP.write_text(json.dumps("
    program += "{'root': str(s.ROOT), 'digest': s.inputs_digest(), 'extras': ['embedded']}))"
    subprocess.run([sys.executable, "-c", program], cwd=checkout / "scripts", check=True)
    assert set_up(checkout, PATH=str(checkout), CXX="").returncode == 0
    # More is wanted than was installed.
    assert set_up(checkout, "--dev", PATH=str(checkout), CXX="").returncode == 1
    (checkout / "constraints.txt").write_text("# other versions\n")
    assert set_up(checkout, PATH=str(checkout), CXX="").returncode == 1


def test_constraints_pin_what_the_project_pins() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    constraints = (ROOT / "constraints.txt").read_text().lower().splitlines()
    wanted = project["dependencies"] + [
        one for extra in project["optional-dependencies"].values() for one in extra
    ]
    pins = [
        one.partition(";")[0].strip().lower().replace("_", "-").partition("[")[0]
        for one in wanted
        if "==" in one and "[" not in one
    ]
    assert [pin for pin in pins if pin not in constraints] == []
