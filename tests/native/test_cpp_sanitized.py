"""The C++ core's own tests, under the address, undefined-behaviour and thread sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(command: list[str], *, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_core_is_clean(sanitizer: str, tmp_path: Path) -> None:
    environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1", ASAN_OPTIONS="detect_leaks=1")
    build = tmp_path / "build"
    configure = [
        "cmake", "-S", str(ROOT / "native_loader"), "-B", str(build), "-G", "Ninja",
        "-DCMAKE_BUILD_TYPE=Debug", "-DFIRSTLIGHT_NATIVE_TESTS=ON",
        f"-DFIRSTLIGHT_SANITIZE={sanitizer}",
    ]  # fmt: skip
    run(configure, cwd=tmp_path, environment=environment)
    run(["cmake", "--build", str(build)], cwd=tmp_path, environment=environment)
    report = run([str(build / "firstlight_native_tests")], cwd=tmp_path, environment=environment)
    assert " 0 failures" in report
