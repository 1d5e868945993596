"""Log lines of a host's processes: short, one a line, to standard error."""

from __future__ import annotations

import logging
import sys


def log_to_stderr(role: str, host_id: str) -> None:
    """`2026-01-31T12:00:00.123 host-a store INFO store.load loaded checkpoint=…`."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s.%(msecs)03d {host_id} {role} %(levelname)s %(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
