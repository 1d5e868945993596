"""What a supervisor holds: a nursery that forks engines, and a handle on each. The protocol is in `process`.

nursery = await Nursery.start(socket_path=state_dir / "engines.sock")
engine = await nursery.spawn(EngineConfig(store_socket=str(store_socket)))
await engine.wait_spare()
await engine.prepare(PrepareCommand(checkpoint_id=…, checkpoint_dir=…))   # a hint, ahead of need
attached = await engine.attach(AttachCommand(…))                          # attached.endpoint serves Generate
await engine.stop(drain_timeout_s=5.0)
await nursery.close()
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from firstlight.domain.errors import EngineGone, FirstlightError, error_type
from gpu_worker.engine.control import (
    AttachCommand,
    Attached,
    EngineConfig,
    PrepareCommand,
    to_message,
)
from gpu_worker.engine.json_lines import LINE_LIMIT_BYTES, read_message, write_message

# One BLAS thread each: a second thread alive at the fork would be lost in the child, with its locks.
# What it forks has all it needs on this host: nothing is looked for on the network, or told on a terminal.
ZYGOTE_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
}


class Calls:
    """Requests and their replies on one connection; every open one fails when the peer goes."""

    def __init__(self, writer: asyncio.StreamWriter, peer: str) -> None:
        self._writer = writer
        self._peer = peer
        self._ids = count(1)
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.is_closed = False

    async def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises: EngineGone when the peer ends first, or the error it answered with."""
        if self.is_closed:
            raise EngineGone(f"{self._peer} has ended", peer=self._peer)
        number = next(self._ids)
        reply = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            write_message(self._writer, {"id": number, **request})
            result: dict[str, Any] = await reply
            return result
        finally:
            del self._open[number]

    def answer(self, message: dict[str, Any]) -> None:
        reply = self._open.get(int(message["id"]))
        if reply is None or reply.done():
            return
        if (error := message.get("error")) is not None:
            reply.set_exception(_error(error, self._peer))
        else:
            reply.set_result(message)

    def close(self) -> None:
        self.is_closed = True
        self._writer.close()
        for reply in self._open.values():
            if not reply.done():
                reply.set_exception(EngineGone(f"{self._peer} ended before it answered", peer=self._peer))


def _error(error: dict[str, Any], peer: str) -> FirstlightError:
    kind = error_type(str(error.get("code")))
    if kind.code == "manifest_invalid":
        return kind(str(error["message"]), rule=error.get("rule", "malformed"), peer=peer)
    return kind(str(error.get("message")), peer=peer)


def _kill_unwanted(forking: asyncio.Future[EngineHandle]) -> None:
    if not forking.cancelled() and forking.exception() is None:
        forking.result().kill()


class EngineHandle:
    """One engine process. `exit_status` is None while it lives; minus the signal if one ended it."""

    def __init__(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self.endpoint: str | None = None
        self.exit_status: int | None = None
        self._calls: Calls | None = None
        self._spare: asyncio.Future[str] = loop.create_future()
        self._exited: asyncio.Future[int | None] = loop.create_future()
        self._status_told = asyncio.Event()
        # pidfd rather than waitpid: the engine is the zygote's child, and may outlive it.
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended()
        else:
            loop.add_reader(self._pidfd, self._pidfd_readable)

    @property
    def is_alive(self) -> bool:
        return not self._exited.done()

    async def wait_spare(self) -> str:
        """Until it can be attached; its endpoint. Raises: EngineGone when it ends first."""
        return await asyncio.shield(self._spare)

    async def prepare(self, command: PrepareCommand) -> float:
        """Have the skeleton built ahead; seconds it took, 0 when it stood already."""
        await self.wait_spare()
        reply = await self._call("prepare", to_message(command))
        return float(reply["skeleton_s"])

    async def attach(self, command: AttachCommand) -> Attached:
        """Raises: StaleEpoch, EngineBusy, EngineGone, AttachFailed, CheckpointError, UnknownCheckpoint."""
        await self.wait_spare()
        return Attached(**await self._call("attach", to_message(command)))

    async def stop(self, *, drain_timeout_s: float = 0.0, kill_after_s: float = 5.0) -> int | None:
        """End it: drain, exit, and kill what will not go. Its exit status, None if nobody could tell."""
        if self.is_alive:
            try:
                async with asyncio.timeout(drain_timeout_s + kill_after_s):
                    if self._calls is not None:
                        await self._call("stop", {"drain_timeout_s": drain_timeout_s})
                        await asyncio.shield(self._exited)
            except (TimeoutError, EngineGone):
                pass
            self.kill()
        return await self.wait_exit()

    def kill(self) -> None:
        if self.is_alive:
            # Through the pidfd: the pid may belong to another process by now. It may have ended without
            # our having been told yet.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait_exit(self) -> int | None:
        """Until the process is gone; its status, or None when its zygote was gone too and told nobody."""
        await asyncio.shield(self._exited)
        try:
            async with asyncio.timeout(1.0):
                await self._status_told.wait()
        except TimeoutError:
            return None
        return self.exit_status

    async def _call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._calls is None:
            raise EngineGone(f"engine {self.pid} is not connected", pid=self.pid)
        reply = await self._calls.call({"call": name, "arguments": arguments})
        return dict(reply["result"])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls = Calls(writer, f"engine {self.pid}")
        try:
            while (message := await read_message(reader)) is not None:
                if message.get("event") == "spare":
                    self.endpoint = str(message["endpoint"])
                    if not self._spare.done():
                        self._spare.set_result(self.endpoint)
                elif "id" in message:
                    self._calls.answer(message)
        except EngineGone:
            self.kill()
        finally:
            self._calls.close()

    def _tell_status(self, status: int | None) -> None:
        if not self._status_told.is_set():
            self.exit_status = status
            self._status_told.set()

    def _pidfd_readable(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended()

    def _ended(self) -> None:
        if not self._exited.done():
            self._exited.set_result(None)
        if not self._spare.done():
            self._spare.set_exception(
                EngineGone(f"engine {self.pid} ended before it was spare", pid=self.pid)
            )
            self._spare.exception()  # nobody may be waiting
        if self._calls is not None:
            self._calls.close()


class Nursery:
    """The listening socket, the zygote behind it, and the engines it forked.

    The process that calls `start` is the supervisor: zygote and engines end with it.
    """

    def __init__(self, socket_path: Path) -> None:
        loop = asyncio.get_running_loop()
        self._socket_path = socket_path
        self._zygote: asyncio.subprocess.Process | None = None
        self._zygote_calls: asyncio.Future[Calls] = loop.create_future()
        self._engines: dict[int, EngineHandle] = {}
        self._server: asyncio.Server | None = None
        self._early: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls,
        *,
        socket_path: Path,
        model_types: Sequence[str] = (),
        executable: Sequence[str] = (sys.executable, "-m", "gpu_worker.engine.zygote"),
        planners: socket.socket | None = None,
    ) -> Nursery:
        """Listen and start the zygote; returns before its imports are done.

        `socket_path` must be shorter than 100 characters.
        `model_types` adds architectures to import and warm beyond the usual ones.
        Who connects to `planners`, a socket that listens, gets a planner of conversions.
        """
        nursery = cls(socket_path)
        socket_path.unlink(missing_ok=True)
        nursery._server = await asyncio.start_unix_server(
            nursery._accept, path=str(socket_path), limit=LINE_LIMIT_BYTES
        )
        socket_path.chmod(0o600)
        nursery._zygote = await asyncio.create_subprocess_exec(
            *executable,
            *("--socket", str(socket_path), "--supervisor-pid", str(os.getpid())),
            *(argument for name in model_types for argument in ("--model-type", name)),
            *(("--planners-fd", str(planners.fileno())) if planners is not None else ()),
            env={**os.environ, **ZYGOTE_ENVIRONMENT},
            pass_fds=(planners.fileno(),) if planners is not None else (),
        )
        return nursery

    async def wait_ready(self) -> None:
        """Until the zygote can fork. Raises: EngineGone when it ended instead."""
        assert self._zygote is not None
        ended = asyncio.ensure_future(self._zygote.wait())
        waited: list[asyncio.Future[Any]] = [ended, self._zygote_calls]  # Any: two kinds of result
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not self._zygote_calls.done():
            raise EngineGone(f"the engine zygote ended with status {self._zygote.returncode}")

    async def spawn(self, config: EngineConfig) -> EngineHandle:
        """Fork one engine; it is not spare yet. Raises: EngineGone when the zygote has ended."""
        await self.wait_ready()
        forking = asyncio.ensure_future(self._fork(config))
        try:
            return await asyncio.shield(forking)
        except asyncio.CancelledError:
            # The zygote forks all the same, and nobody else would ever end that engine.
            forking.add_done_callback(_kill_unwanted)
            raise

    async def _fork(self, config: EngineConfig) -> EngineHandle:
        calls = await self._zygote_calls
        reply = await calls.call({"fork": to_message(config)})
        pid = int(reply["forked"])
        engine = self._engines.get(pid) or self._adopt(pid)
        if (early := self._early.pop(pid, None)) is not None:
            self._keep(engine._serve(*early))
        return engine

    @property
    def zygote_pid(self) -> int:
        assert self._zygote is not None
        return self._zygote.pid

    async def wait_zygote_exit(self) -> int:
        """Engines live on without it, but no more can be spawned: make a new nursery, on another socket."""
        assert self._zygote is not None
        return await self._zygote.wait()

    async def close(self) -> None:
        """Kill every engine, end the zygote, stop listening."""
        for engine in list(self._engines.values()):
            engine.kill()
        for engine in list(self._engines.values()):
            await asyncio.shield(engine._exited)
        if self._zygote is not None and self._zygote.returncode is None:
            self._zygote.kill()
            await self._zygote.wait()
        if self._server is not None:
            self._server.close()
        for _, writer in self._early.values():
            # An engine whose only control connection ends, ends.
            writer.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket_path.unlink(missing_ok=True)

    def _adopt(self, pid: int) -> EngineHandle:
        engine = self._engines[pid] = EngineHandle(pid)
        engine._exited.add_done_callback(lambda _: self._forget(pid))
        return engine

    def _forget(self, pid: int) -> None:
        self._engines.pop(pid, None) if self._zygote_is_gone else None

    @property
    def _zygote_is_gone(self) -> bool:
        return self._zygote is None or self._zygote.returncode is not None

    def _keep(self, work: Any) -> None:
        # Any: a coroutine of no value. The set holds the task, which the loop only holds weakly.
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            hello = await read_message(reader)
        except EngineGone:
            hello = None
        if hello is None:
            writer.close()
        elif hello.get("hello") == "zygote":
            await self._serve_zygote(reader, writer)
        elif (engine := self._engines.get(int(hello["pid"]))) is not None:
            await engine._serve(reader, writer)
        else:
            # The engine was faster than the zygote's answer; `spawn` picks it up.
            self._early[int(hello["pid"])] = (reader, writer)

    async def _serve_zygote(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls = Calls(writer, "engine zygote")
        if not self._zygote_calls.done():
            self._zygote_calls.set_result(calls)
        try:
            while (message := await read_message(reader)) is not None:
                if "exited" in message:
                    self._engine_exited(int(message["exited"]), int(message["status"]))
                elif "id" in message:
                    calls.answer(message)
        except EngineGone:
            pass
        finally:
            calls.close()
            for engine in list(self._engines.values()):
                if not engine.is_alive:
                    engine._tell_status(None)

    def _engine_exited(self, pid: int, status: int) -> None:
        if (engine := self._engines.pop(pid, None)) is not None:
            engine._tell_status(status)
