"""`firstlight up`: every role of Firstlight on one machine, started, supervised and stopped as one."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from rich.console import Console

from firstlight.domain.errors import InvalidSettings
from firstlight.launcher.backing import check_backing_ports
from firstlight.launcher.cluster import Cluster
from firstlight.launcher.down import end_leftovers
from firstlight.launcher.gpu_host import host_ids
from firstlight.launcher.lasting_output import LastingOutput
from firstlight.launcher.machine_checks import check_disk, check_port, free_port, prepare_state_dir
from firstlight.launcher.run_file import RunRecord, hold_lock, read_run, run_path
from firstlight.rpc.identity import assume, check_listener
from firstlight.settings import Settings

Use = Callable[[RunRecord], Awaitable[None]]
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_until_stopped(settings: Settings, *, console: Console, use: Use) -> None:
    """Start everything; run `use` until it returns, or Ctrl-C or SIGTERM comes; stop everything.

    Raises: FirstlightError when something cannot be started, and whatever `use` raises.
    """
    # Any: rich asks for no more than what a text file has.
    lasting: Any = LastingOutput(console.file)
    console.file = lasting
    asyncio.run(_run(settings, console, use))


async def _run(settings: Settings, console: Console, use: Use) -> None:
    host_ids(settings)
    _check_keys(settings)
    check_listener(settings.host_bind_address, assume(settings.rpc_tls_dir, may_be_plain=settings.rpc_plain))
    prepare_state_dir(settings.state_dir)
    # Relative paths would mean something else in a role that changes its directory.
    settings = settings.model_copy(update={"state_dir": settings.state_dir.resolve()})
    with hold_lock(settings.state_dir):
        _clear_up(settings, console)
        check_disk(settings.state_dir)
        settings = _with_ports(settings)
        work = asyncio.ensure_future(_up_and_use(settings, console, use))
        # Being asked to stop by a signal is no failure.
        with _stop_on_signals(work, console), contextlib.suppress(asyncio.CancelledError):
            await work
        run_path(settings.state_dir).unlink(missing_ok=True)


def _check_keys(settings: Settings) -> None:
    """The API would refuse too, but as a role that keeps ending. Raises: InvalidSettings."""
    if not settings.is_loopback() and settings.first_api_key() is None:
        raise InvalidSettings(
            f"the API would listen on {settings.api_host} without keys: set FIRSTLIGHT_API_KEYS, or listen "
            "on 127.0.0.1",
            setting="FIRSTLIGHT_API_KEYS",
        )


async def _up_and_use(settings: Settings, console: Console, use: Use) -> None:
    cluster = Cluster(settings, console)
    try:
        await use(await cluster.start())
    finally:
        await cluster.stop()


def _clear_up(settings: Settings, console: Console) -> None:
    record = read_run(settings.state_dir)
    ended = end_leftovers(record) if record else []
    # Nobody may take the old run's addresses for this one's.
    run_path(settings.state_dir).unlink(missing_ok=True)
    if ended:
        console.print(f"[yellow]ended what a killed run had left: {', '.join(ended)}[/]")


def _with_ports(settings: Settings) -> Settings:
    """Every port checked; one of 0 chosen. Raises: PortTaken, LaunchError."""
    check_port(settings.api_host, settings.api_port, setting="FIRSTLIGHT_API_PORT")
    if settings.api_port == 0:
        settings = settings.model_copy(update={"api_port": free_port(settings.api_host)})
    return check_backing_ports(settings)


@contextlib.contextmanager
def _stop_on_signals(work: asyncio.Future[None], console: Console) -> Iterator[None]:
    """The first signal stops in order; those that follow change nothing, as stopping has its deadlines."""
    loop = asyncio.get_running_loop()
    asked: list[int] = []

    def stop(number: int) -> None:
        if not asked:
            work.cancel()
            console.print("\nstopping …")
        asked.append(number)

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
