"""Makes one conversion of a GGUF file read its header once instead of five times, each time faster.

transformers opens the file anew for the configuration, the tokenizer and the weights, and builds gguf's table
of tensor names for every module of the model. With a vocabulary of 49,000 entries that is most of the time
a small model takes. Both are pure functions of the file, so this process remembers them.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np


class QuickReader(gguf.GGUFReader):  # type: ignore[misc]  # gguf is untyped
    """Slices plain memory: every slice of a memmap makes a memmap, twenty times slower, a million times."""

    @property
    def data(self) -> Any:
        return self._plain

    @data.setter
    def data(self, mapped: Any) -> None:
        # The view keeps the mapping alive.
        self._plain = mapped.view(np.ndarray)


_name_map = functools.cache(gguf.get_tensor_name_map)


def use_quick_reader() -> None:
    """From now on, in this process, whoever imports these two from gguf gets the remembering ones."""
    gguf.GGUFReader = quick_reader
    gguf.get_tensor_name_map = _name_map


def quick_reader(path: str | Path, mode: str = "r") -> QuickReader:
    """The same one while the file stays as it is, and no other is read."""
    if mode != "r":
        raise ValueError("a conversion only reads")
    found = Path(path).resolve()
    about = found.stat()
    return _read(found, about.st_size, about.st_mtime_ns)


def forget() -> None:
    """Let go of the file that was read last: its table of words is large."""
    _read.cache_clear()


@functools.lru_cache(maxsize=1)
def _read(path: Path, size_bytes: int, modified_ns: int) -> QuickReader:
    """The file's size and time are part of the question: another file is read anew."""
    return QuickReader(path)
