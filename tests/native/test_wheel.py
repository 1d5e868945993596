"""The built wheel by itself: installed elsewhere, imported from elsewhere, without the sources beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch, native_loader
assert Path(native_loader.__file__).is_relative_to(sys.argv[1]), native_loader.__file__
assert Path(native_loader._native.__file__).is_relative_to(sys.argv[1]), native_loader._native.__file__
native_loader.save_checkpoint({"a": torch.arange(3)}, Path(sys.argv[2]))
print(native_loader.load_state_dict(Path(sys.argv[2]))["a"].tolist())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_works_away_from_its_sources(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    # What is tested is what a wheel holds; a compiler that does not optimise is done in half the time.
    settings = ["-C", "cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0"]
    settings += ["-C", f"build-dir={tmp_path / 'build'}", "-w", str(tmp_path)]
    subprocess.run([*build, *settings, str(ROOT)], check=True, timeout=500)
    wheel = next(tmp_path.glob("firstlight-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "native_loader/_native.pyi" in names
    assert "native_loader/py.typed" in names
    # Files of the console, which no import would miss.
    page = {path.name for path in (ROOT / "api/console/page").iterdir()}
    assert {f"api/console/page/{name}" for name in page} <= set(names)
    assert not [name for name in names if name.startswith("native_loader/src/")]
    # -S -I: neither the editable install's hook nor the working directory may help.
    site_packages = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    program = f"import sys; sys.path.append({str(site_packages)!r}){PROGRAM}"
    command = [sys.executable, "-S", "-I", "-c", program, str(tmp_path / "installed"), str(tmp_path / "c")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[0, 1, 2]\n", done.stderr
