"""The outermost shell of a role's process: settings, log, and an end that SIGTERM asks for."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from firstlight.domain.errors import FirstlightError
from firstlight.rpc.identity import assume
from firstlight.settings import Settings, read_settings
from firstlight.telemetry import tracing
from firstlight.telemetry.log_lines import log_to_stderr

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Role = Callable[[Settings, asyncio.Event], Awaitable[None]]


# A worker whose Temporal has gone would tell it of its end for a minute, to nobody.
LEAVE_WITHIN_S = 4.0
AGENT = "host-agent"


def run_role(
    role: Role,
    *,
    name: str,
    settings: Settings | None = None,
    leave_within_s: float | None = LEAVE_WITHIN_S,
) -> NoReturn:
    """Run `role(settings, stop)` until it returns; `stop` is set by SIGTERM or SIGINT.

    `name` is what its log lines and spans call it.

    It may take `leave_within_s` to return then; None: it bounds that itself.

    Ends the process: with code 0, or with 1 and one sentence if the role cannot go on.
    """
    try:
        settings = settings or read_settings()
        assume(settings.rpc_tls_dir, may_be_plain=settings.rpc_plain)
        # A host's agent serves one host, and says which; for the others the setting means nothing.
        host_id = settings.host_ids if name == AGENT else ""
        log_to_stderr(
            log_format=settings.log_format,
            level=settings.log_level,
            text="%(asctime)s %(levelname)s %(name)s %(message)s",
            of={"role": name, "host_id": host_id},
            secrets=settings.secrets(),
        )
        tracing.start(name, instance=host_id)
        # It tells two lines of how it looked at the schema, at every start.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        asyncio.run(_until_stopped(role, settings, leave_within_s))
    except FirstlightError as error:
        print(f"firstlight: {error.message}", file=sys.stderr)
        raise SystemExit(1) from error
    # Threads of the Temporal client may still hand over to Python while the interpreter takes itself
    # apart, which aborts the process. All that mattered is closed, so end without that phase.
    _end_now()


def _end_now() -> NoReturn:
    tracing.stop()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


async def _until_stopped(role: Role, settings: Settings, leave_within_s: float | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    work, stopped = asyncio.ensure_future(role(settings, stop)), asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait((work,), timeout=leave_within_s)
    if not work.done():
        log.warning("not everything could be closed within %.0f s; ending without", leave_within_s)
        # Cancelling would wait for the very same.
        _end_now()
    stopped.cancel()
    work.result()


# Any: what a coroutine yields and is sent, which only the event loop sees.
async def unless_stopped(work: Coroutine[Any, Any, Answer], stop: asyncio.Event) -> Answer | None:
    """What `work` answers, or None if `stop` came first; it is cancelled and waited for then."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for unfinished in (task, stopped):
            unfinished.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
    return None if task.cancelled() else task.result()
