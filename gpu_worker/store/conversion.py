"""Run the converter as a process of its own (it needs torch; the store does not) and follow its output."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstlight.domain.errors import FirstlightError, SourceCorrupt, error_type
from firstlight.domain.names import parse_checkpoint_id
from gpu_worker.store.tied_process import kill_group, start_tied

log = logging.getLogger("store.convert")

# Engines of this host serve while it converts.
NICENESS = 10
CONVERTER = (sys.executable, "-m", "gpu_worker.convert")


@dataclass(frozen=True, slots=True)
class Converted:
    """What the converter wrote."""

    manifest_digest: str
    size_bytes: int


async def convert(
    source: Path,
    destination: Path,
    *,
    checkpoint_id: str,
    dtype: str,
    on_progress: Callable[[int, int], None],
    converter: Sequence[str] = CONVERTER,
) -> Converted:
    """Convert `source` into `destination`; `on_progress(bytes_done, bytes_total)` may raise to stop it.

    Raises: what the converter reports (SourceUnsupported, SourceCorrupt, DiskFull …), or SourceCorrupt when
    it dies without a word.
    """
    # Recorded in the manifest, and so part of its digest: the same on every host, wherever the files lay.
    model, revision = parse_checkpoint_id(checkpoint_id)
    argv = [*converter, str(source), str(destination), "--dtype", dtype]
    argv += ["--model", model, "--revision", revision]
    process = await start_tied(argv, env={"TQDM_DISABLE": "1"}, has_output=True, niceness=NICENESS)
    try:
        last = await _follow(process, on_progress)
        status = await process.wait()
    finally:
        # Also on cancellation and when on_progress raised: no converter may go on writing.
        kill_group(process)
        await process.wait()
    return _outcome(last, status)


async def _follow(
    process: asyncio.subprocess.Process, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    assert process.stdout is not None
    last: dict[str, Any] = {}
    while line := await process.stdout.readline():
        if (message := _decoded(line)) is None:
            log.info("converter said %s", line[:200])
            continue
        last = message
        if "bytes_total" in last:
            on_progress(int(last.get("bytes_done", 0)), int(last["bytes_total"]))
    return last


# Any: a line of the converter's JSON, looked at field by field.
def _decoded(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _outcome(last: dict[str, Any], status: int) -> Converted:
    if (code := last.get("error")) is not None:
        kind = error_type(str(code))
        if kind.code == "manifest_invalid":
            raise kind(str(last.get("message")), rule=str(last.get("rule", "malformed")))
        raise kind(str(last.get("message")))
    if last.get("done") and status == 0:
        return Converted(str(last["manifest_digest"]), int(last["size_bytes"]))
    if status < 0:
        raise FirstlightError(f"the converter was ended by signal {-status}; memory may have run out")
    raise SourceCorrupt(f"the converter ended with status {status} and no result")
