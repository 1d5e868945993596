"""The calls of the CUDA driver, as declared here and as NVIDIA's header has them, where that is installed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.native.cuda_standin.standin import SOURCE, cuda_headers

ROOT = Path(__file__).resolve().parents[2]
HEADERS = cuda_headers()

pytestmark = pytest.mark.skipif(
    HEADERS is None, reason="no CUDA toolkit here: cuda.h to compare with is missing"
)


def compile_only(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_our_declarations_are_those_of_the_header() -> None:
    checks = SOURCE.with_name("declarations.cpp")
    includes = ["-I", str(ROOT / "native_loader" / "src"), "-isystem", str(HEADERS)]
    compile_only(["c++", "-std=c++20", "-fsyntax-only", *includes, str(checks)])


def test_the_stand_in_answers_to_the_header_too() -> None:
    """A definition that differs from its declaration in cuda.h is an error of the compiler."""
    options = ["-std=gnu11", "-Werror", "-DSTANDIN_WITH_CUDA_H", "-isystem", str(HEADERS), "-fsyntax-only"]
    compile_only(["cc", *options, str(SOURCE)])


def test_names_are_looked_up_as_the_header_maps_them() -> None:
    """An unversioned name would be the interface of CUDA 3, with other argument types."""
    header = (Path(str(HEADERS)) / "cuda.h").read_text()
    mapped = dict(
        re.findall(r"^#define (cu[A-Za-z]+)\s+(?:__CUDA_API_PT[SD]S?Z?\()?(cu\w+)\)?\s*$", header, re.M)
    )
    source = (ROOT / "native_loader" / "src" / "cuda_driver.cpp").read_text()
    looked_up = re.findall(r'find\(api_\.\w+, "(cu\w+)"\)', source)
    assert len(looked_up) == 30
    for name in looked_up:
        plain = re.sub(r"_v\d+$", "", name)
        assert mapped.get(plain, plain) == name
