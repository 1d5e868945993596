"""Log lines of a process, to standard error: text for a person, or one JSON object a line for a collector.

Both carry the ids that a line concerns, and neither carries a secret (see redaction).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Literal

from firstlight.telemetry import tracing
from firstlight.telemetry.ids import bound
from firstlight.telemetry.redaction import Redaction

LogFormat = Literal["text", "json"]
# What Temporal's own loggers attach to a record, and what of it names the work.
_TEMPORAL = ("temporal_workflow", "temporal_activity")
_TEMPORAL_IDS = ("workflow_id", "run_id", "workflow_type", "activity_type", "activity_id")


def log_to_stderr(
    *,
    log_format: LogFormat,
    level: str | int,
    text: str,
    text_date: str | None = None,
    of: Mapping[str, str],
    secrets: Iterable[str] = (),
) -> None:
    """Send all log records of this process to standard error.

    `text` and `text_date` are the pattern of a text line, `of` the fields that every JSON line has.
    """
    redaction = Redaction(secrets)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines(of, redaction) if log_format == "json" else TextLines(text, text_date, redaction)
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """The pattern, then ` name=value` for each id."""

    def __init__(self, pattern: str, date_pattern: str | None, redaction: Redaction) -> None:
        super().__init__(pattern, date_pattern)
        self._redaction = redaction

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        ids = "".join(f" {name}={value}" for name, value in bound().items() if value not in line)
        return line + ids

    def format(self, record: logging.LogRecord) -> str:
        return self._redaction.hide(super().format(record))


class JsonLines(logging.Formatter):
    """One object a line: timestamp, level, logger, message, what the process is, the ids, the exception."""

    def __init__(self, of: Mapping[str, str], redaction: Redaction) -> None:
        super().__init__()
        self._of = {name: value for name, value in of.items() if value}
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "timestamp": f"{second}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": self._redaction.hide(record.getMessage()),
            **self._of,
            **_temporal_ids(record),
            **bound(),
            **tracing.current_ids(),
            "process_id": record.process,
        }
        if record.exc_info:
            line["exception"] = self._redaction.hide(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def _temporal_ids(record: logging.LogRecord) -> dict[str, str]:
    for name in _TEMPORAL:
        told = getattr(record, name, None)
        if isinstance(told, Mapping):
            return {key: str(told[key]) for key in _TEMPORAL_IDS if told.get(key)}
    return {}
