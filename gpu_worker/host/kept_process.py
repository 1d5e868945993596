"""A process that is started again whenever it ends, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from gpu_worker.host.backoff import Backoff
from gpu_worker.store.tied_process import end_group, kill_remains, start_tied

log = logging.getLogger("host.process")


class KeptProcess:
    """`argv` is asked for anew at every start. `on_exit` is called at each end, before the back-off."""

    def __init__(
        self,
        *,
        name: str,
        argv: Callable[[], Sequence[str]],
        env: Mapping[str, str] | None = None,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._argv = argv
        self._env = env
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        """Of the living process, None between two."""
        if self._process is None or self._process.returncode is not None:
            return None
        return self._process.pid

    def start(self) -> None:
        """Keep it running from now on. Call from the main thread (see start_tied)."""
        self._task = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self, *, grace_s: float) -> None:
        """End it and its group, SIGTERM first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            await end_group(self._process, grace_s=grace_s)

    async def _keep(self) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            self._process = await start_tied(self._argv(), env=self._env)
            log.info("started name=%s pid=%d", self.name, self._process.pid)
            status = await self._process.wait()
            # Whatever it had started shares its group, and must not meet its successor.
            kill_remains(self._process)
            self._on_exit()
            delay_s = backoff.after(lived_s=time.monotonic() - began)
            self.restarts += 1
            log.warning("ended name=%s status=%d restart_in_s=%.1f", self.name, status, delay_s)
            await asyncio.sleep(delay_s)
