"""Log lines of a host's processes: short, one a line, to standard error."""

from __future__ import annotations

import logging

from firstlight.telemetry.log_lines import LogFormat, log_to_stderr


def log_process(role: str, host_id: str, log_format: LogFormat) -> None:
    """`2026-01-31T12:00:00.123 host-a store INFO store.load loaded checkpoint=…`, or the same as JSON."""
    log_to_stderr(
        log_format=log_format,
        level=logging.INFO,
        text=f"%(asctime)s.%(msecs)03d {host_id} {role} %(levelname)s %(name)s %(message)s",
        text_date="%Y-%m-%dT%H:%M:%S",
        of={"role": role, "host_id": host_id},
    )
