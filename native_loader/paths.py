"""What a caller may give as a path."""

from __future__ import annotations

import os

StrPath = str | os.PathLike[str]
