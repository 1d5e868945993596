"""Promises about the tree itself: import rules, generated files, names nobody else uses."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from firstlight.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OWN_PACKAGES = frozenset(
    {
        "firstlight",
        "workflows",
        "activities",
        "gpu_worker",
        "native_loader",
        "migrations",
        "api",
        "benchmarks",
        "simulator",
    }
)


def test_no_other_distribution_ships_our_top_level_names() -> None:
    owners = importlib.metadata.packages_distributions()
    foreign = {
        name: sorted(set(owners[name]) - {"firstlight"})
        for name in OWN_PACKAGES & set(owners)
        if set(owners[name]) - {"firstlight"}
    }
    assert foreign == {}


def test_imports_run_one_way() -> None:
    linter = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linter.returncode == 0, linter.stdout + linter.stderr


def test_generated_stubs_are_fresh() -> None:
    generator = subprocess.run(
        [sys.executable, "-m", "firstlight.rpc.generate", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert generator.returncode == 0, generator.stderr


@pytest.mark.parametrize("heavy", ["torch", "transformers", "temporalio", "sqlalchemy", "grpc", "fastapi"])
def test_client_commands_import_nothing_heavy(heavy: str) -> None:
    program = f"import sys, firstlight.cli.main; raise SystemExit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_domain_and_store_need_no_torch() -> None:
    program = (
        "import sys, firstlight.domain.scheduler, gpu_worker.store; raise SystemExit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_operators_guide_names_every_setting() -> None:
    guide = (ROOT / "docs" / "operators" / "settings.md").read_text()
    names = [f"`FIRSTLIGHT_{name.upper()}`" for name in Settings.model_fields]
    assert [name for name in names if name not in guide] == []
