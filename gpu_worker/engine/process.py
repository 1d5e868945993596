"""One engine process: forked from the zygote, spare until it is attached, then serving until it is stopped.

Who connects to whom. The supervisor listens on ONE Unix socket (`gpu_worker.engine.client.Nursery`); the
zygote and every engine connect to it, so that "ready" is an accepted connection and nobody polls. JSON, one
object a line.

    zygote  -> {"hello":"zygote","pid":P}                 imports done, may fork
            <- {"id":N,"fork":{EngineConfig}}
            -> {"id":N,"forked":P}
            -> {"exited":P,"status":S}                    exit code, or minus the signal
    engine  -> {"hello":"engine","pid":P}                 first line of its own connection
            -> {"event":"spare","endpoint":"host:port"}   arena mapped and populated, Inference served
            <- {"id":N,"call":"prepare","arguments":{PrepareCommand}}
            -> {"id":N,"result":{"skeleton_s":…}}
            <- {"id":N,"call":"attach","arguments":{AttachCommand}}
            -> {"id":N,"result":{Attached}}               Generate serves from now on, at `endpoint`
            <- {"id":N,"call":"stop","arguments":{"drain_timeout_s":…}}
            -> {"id":N,"result":{"aborted":…}}            and the process exits with 0
    any call -> {"id":N,"error":{"code":…,"message":…}}   a code of firstlight.domain.errors

Life. `spare -> attaching -> ready -> draining -> exit`. An engine attaches once. A refusal by the store
leaves it spare; after any other failure to attach it exits (1) and the supervisor forks another. A repeat of
the same (instance_id, epoch) gets the first outcome; a lower epoch StaleEpoch; anything else EngineBusy. The
checkpoint's files (config.json, manifest.json) are found in the directory the store names with the pin; the
pin lasts as long as the engine's connection to the store.

A checkpoint may still be loading when it is attached. Generate then serves too, and waits inside; if the rest
of the weights does not come, requests end with EngineGone and the process exits (5).

Deaths. Zygote and engines watch the supervisor's pidfd and end with it. Engines outlive the zygote. A spare
whose store is gone exits (3); a bound one that has all of its weights serves on, for the arena lives as long
as someone maps it.

Threads of an engine: asyncio (gRPC and control), the decode loop, the supervisor watch, and for a moment the
one that populates the arena's pages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import threading
from typing import Any

import torch

from firstlight.domain.errors import EngineGone, FirstlightError, InvalidInput
from firstlight.rpc import engine_pb2_grpc
from firstlight.rpc.identity import assume
from firstlight.rpc.server import bind, new_server
from gpu_worker.engine.attachment import Attacher
from gpu_worker.engine.control import AttachCommand, EngineConfig, PrepareCommand, to_message
from gpu_worker.engine.gpu_weights import GpuPlace
from gpu_worker.engine.json_lines import LINE_LIMIT_BYTES, read_message, write_message
from gpu_worker.engine.service import InferenceService
from gpu_worker.engine.state import EngineState
from gpu_worker.engine.store_link import StoreLink
from gpu_worker.engine.warmup import warm

log = logging.getLogger("engine")

EXIT_STOPPED, EXIT_FAILED, EXIT_STORE_GONE, EXIT_ORPHANED, EXIT_CRASHED = 0, 1, 3, 4, 70
EXIT_WEIGHTS_LOST = 5
LAST_WORDS_S = 0.5


class EngineProcess:
    """The composition root of an engine: control connection, store link, service."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._state = EngineState()
        self._service = InferenceService(self._state)
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._attacher: Attacher | None = None

    async def run(self, control_path: str) -> int:
        """Serve until told to stop; the process's exit status."""
        reader, writer = await asyncio.open_unix_connection(control_path, limit=LINE_LIMIT_BYTES)
        write_message(writer, {"hello": "engine", "pid": os.getpid()})
        link = await StoreLink.connect(self._config.store_socket)
        link.on_lost = self._store_lost
        assume(self._config.tls_dir, may_be_plain=self._config.may_be_plain)
        server = new_server(is_warm_path=True)
        engine_pb2_grpc.add_InferenceServicer_to_server(self._service, server)
        endpoint = bind(server, bind_address=self._config.bind_address, port=0)
        await server.start()
        # A page that is mapped now is a fault less in the first forward pass.
        await asyncio.to_thread(link.view.populate)
        gpu = None
        if self._config.device != "cpu":
            await asyncio.to_thread(warm, ["llama"], device=self._config.device)
            gpu = await asyncio.to_thread(
                GpuPlace, torch.device(self._config.device).index, library=self._config.cuda_library
            )
        self._attacher = Attacher(
            self._config,
            self._state,
            link,
            endpoint=endpoint,
            on_weights_lost=self._weights_lost,
            gpu=gpu,
        )
        write_message(writer, {"event": "spare", "endpoint": endpoint})
        listening = asyncio.ensure_future(self._listen(reader, writer))
        status = await self._exit
        listening.cancel()
        # Streams that are told why they end get the time to carry it to their clients.
        await server.stop(grace=LAST_WORDS_S if status == EXIT_WEIGHTS_LOST else 0)
        return status

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (message := await read_message(reader)) is not None:
                task = asyncio.ensure_future(self._answer(message, writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except FirstlightError as error:
            log.warning("control connection: %s", error.message)
        self._end(EXIT_ORPHANED)

    # Any: decoded JSON messages.
    async def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        status = None
        try:
            result, status = await self._call(str(message["call"]), message["arguments"])
            reply = {"id": message["id"], "result": result}
        except FirstlightError as error:
            log.warning("%s failed: %s", message.get("call"), error.message)
            told = {"code": error.code, "message": error.message, "rule": error.fields.get("rule")}
            reply = {"id": message["id"], "error": told}
            if message["call"] == "attach" and self._state.name == "attaching":
                status = EXIT_FAILED
        write_message(writer, reply)
        await writer.drain()
        if status is not None:
            self._end(status)

    async def _call(self, name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        """The call's result, and the status to exit with after it, if any."""
        assert self._attacher is not None
        if name == "prepare":
            return {"skeleton_s": await self._attacher.prepare(PrepareCommand(**arguments))}, None
        if name == "attach":
            return to_message(await self._attacher.attach(AttachCommand(**arguments))), None
        if name == "stop":
            aborted = await self._service.drain(float(arguments["drain_timeout_s"]))
            return {"aborted": aborted}, EXIT_STOPPED
        raise InvalidInput(f"no such call: {name!r}")

    def _store_lost(self) -> None:
        if self._state.name == "spare":
            self._end(EXIT_STORE_GONE)
        else:
            log.warning("the store is gone; this engine goes on with the memory it has mapped")

    def _weights_lost(self, why: EngineGone) -> None:
        log.error("%s", why.message)
        self._state.drain()
        if self._state.engine is not None:
            # Blocks for no longer than the pass under way, which has just ended or is about to.
            self._state.engine.close()
        self._end(EXIT_WEIGHTS_LOST)

    def _end(self, status: int) -> None:
        if not self._exit.done():
            self._exit.set_result(status)


def serve(config: EngineConfig, *, control_path: str, supervisor_fd: int) -> int:
    """Run one engine in this freshly forked process. The exit status."""
    threading.Thread(target=_die_with, args=(supervisor_fd,), name="supervisor-watch", daemon=True).start()
    torch.set_num_threads(config.threads)

    async def run() -> int:
        return await EngineProcess(config).run(control_path)

    try:
        return asyncio.run(run())
    except (FirstlightError, OSError) as failure:
        log.error("engine could not start: %s", failure)
        return EXIT_FAILED


def _die_with(supervisor_fd: int) -> None:
    """A pidfd is readable once its process has ended; an event loop that hangs does not matter here."""
    select.select([supervisor_fd], [], [])
    os._exit(EXIT_ORPHANED)
