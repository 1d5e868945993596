"""Damage to a checkpoint on an SSD, as a failing device does it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def flip_a_byte(path: Path, *, at: int) -> None:
    """Change one bit of a file that may be a link to one that other tests use. Negative: from its end."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
