"""The C++ core's own tests, built with a sanitizer and run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def core_is_clean(sanitizer: str, folder: Path) -> None:
    """Raises: AssertionError with what the sanitizer, a test or the build says."""
    environment = dict(os.environ, TSAN_OPTIONS="halt_on_error=1", ASAN_OPTIONS="detect_leaks=1")
    build = folder / "build"
    configure = [
        "cmake", "-S", str(ROOT / "native_loader"), "-B", str(build), "-G", "Ninja",
        # Reports name lines and whole stacks still, and the checks run several times as fast as without.
        "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-g1 -O1", "-DFIRSTLIGHT_NATIVE_TESTS=ON",
        f"-DFIRSTLIGHT_SANITIZE={sanitizer}",
    ]  # fmt: skip
    _run(configure, cwd=folder, environment=environment)
    _run(["cmake", "--build", str(build)], cwd=folder, environment=environment)
    report = _run([str(build / "firstlight_native_tests")], cwd=folder, environment=environment)
    assert " 0 failures" in report


def _run(command: list[str], *, cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout
