"""The committed stub says what the built extension does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import native_loader

STUB = Path(native_loader.__file__).with_name("_native.pyi")


def test_the_stub_is_fresh(tmp_path: Path) -> None:
    made = tmp_path / "_native.pyi"
    generate = [
        sys.executable,
        "-m",
        "nanobind.stubgen",
        "-q",
        "-m",
        "native_loader._native",
        "-o",
        str(made),
    ]
    subprocess.run(generate, check=True)
    # Under the project's own settings (line length), as the committed one was.
    settings = STUB.parents[1] / "pyproject.toml"
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "-q", "--config", str(settings), str(made)], check=True
    )
    assert made.read_text() == STUB.read_text(), (
        f"regenerate: {' '.join(generate[1:-1])} {STUB.name}, then ruff format"
    )
