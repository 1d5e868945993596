"""Builds and steers the stand-in of the CUDA driver: host memory, no GPU. Whatever passes was not on one."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("cuda_standin.c")
CUDA_HEADERS = (Path("/usr/local/cuda/include"), *sorted(Path("/usr/local").glob("cuda-*/include")))

OUT_OF_MEMORY, INVALID_CONTEXT, ILLEGAL_ADDRESS, NOT_PERMITTED = 2, 201, 700, 800


@functools.cache
def library() -> str:
    """The path of a freshly compiled libcuda.so.1; one build a process, removed with it."""
    compiler = shutil.which("cc")
    assert compiler is not None, "a C compiler is needed, as to build the loader itself"
    folder = tempfile.TemporaryDirectory(prefix="cuda-standin-")
    built = Path(folder.name) / "libcuda.so.1"
    flags = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, "-o", str(built), str(SOURCE)], check=True)
    _kept.append(folder)
    return str(built)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def cuda_headers() -> Path | None:
    """Where cuda.h is, if a CUDA toolkit is installed."""
    return next((path for path in CUDA_HEADERS if (path / "cuda.h").is_file()), None)


class Standin:
    """This process's instance of the library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(library())

    @property
    def live(self) -> int:
        """Allocations, imports, registrations, streams and events not given back."""
        return int(self._library.standin_live())

    @property
    def contexts(self) -> int:
        """How often a device's context is held."""
        return int(self._library.standin_contexts())

    def most_copies(self) -> int:
        """How many ran at one time, at most, since this was asked last."""
        return int(self._library.standin_most_copies())

    @contextmanager
    def losing_copies(self) -> Iterator[None]:
        """Copies are said to be done, and move nothing."""
        self._library.standin_lose_copies(1)
        try:
            yield
        finally:
            self._library.standin_lose_copies(0)

    @contextmanager
    def failing(self, call: str, result: int, *, after: int = 0, is_sticky: bool = False) -> Iterator[None]:
        """`call` answers `result` at its `after`-th time: once, or every call from then on."""
        self._library.standin_fail(call.encode(), after, result, int(is_sticky))
        try:
            yield
        finally:
            self._library.standin_fail(b"", 0, 0, 0)
