"""A process that serves crowds may open as many files as the system allows."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from firstlight.launcher.open_files import allow_open_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
assert allow_open_files() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
assert allow_open_files() == hard
"""


def test_the_soft_limit_becomes_the_hard_one() -> None:
    # In a process of its own: limits are the whole process's.
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
