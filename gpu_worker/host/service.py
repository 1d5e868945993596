"""The gRPC Host service over the engines. Says and converts; decides nothing."""

from __future__ import annotations

import time
from math import inf, isfinite
from pathlib import Path
from typing import Any

import grpc

from firstlight.domain.errors import InvalidInput
from firstlight.domain.names import parse_checkpoint_id
from firstlight.rpc import host_pb2 as wire
from firstlight.rpc.host_pb2_grpc import HostServicer
from firstlight.rpc.status import answering
from gpu_worker.engine.control import AttachCommand, PrepareCommand
from gpu_worker.host.devices import Gpu
from gpu_worker.host.engines import AttachOutcome, BoundEngine, Engines
from gpu_worker.host.kept_for import KeptFor
from gpu_worker.host.spares import Spare, Spares

# Any: the servicer's context is generic in messages that this code never reads through it.
Context = grpc.aio.ServicerContext[Any, Any]


class HostService(HostServicer):
    """See host.proto for what each call promises."""

    def __init__(
        self,
        *,
        host_id: str,
        gpu_count: int,
        gpus: tuple[Gpu, ...],
        engines: Engines,
        spares: Spares,
        checkpoints: Path,
    ) -> None:
        self._gpus = gpus
        self._host_id = host_id
        self._gpu_count = gpu_count
        self._engines = engines
        self._spares = spares
        self._checkpoints = checkpoints

    async def Attach(self, request: wire.AttachRequest, context: Context) -> wire.AttachReply:
        async with answering(context):
            outcome = await self._engines.attach(
                _command(request), tuple(request.gpu_indices), is_ahead=request.is_ahead
            )
            return _attach_reply(outcome)

    async def Stop(self, request: wire.StopRequest, context: Context) -> wire.StopReply:
        async with answering(context):
            was_running = await self._engines.stop(
                instance_id=request.instance_id,
                epoch=request.epoch,
                drain_timeout_s=request.drain_timeout_s,
                reason=request.reason,
            )
            return wire.StopReply(was_running=was_running)

    async def ListEngines(self, request: wire.ListEnginesRequest, context: Context) -> wire.ListEnginesReply:
        bound = [*self._engines.bound, *self._engines.take_exited()]
        rows = [*map(_bound_row, bound), *map(_spare_row, self._spares.all)]
        return wire.ListEnginesReply(
            engines=rows,
            host_id=self._host_id,
            gpu_count=self._gpu_count,
            gpus=[
                wire.Gpu(index=gpu.index, name=gpu.name, memory_bytes=gpu.memory_bytes, uuid=gpu.uuid)
                for gpu in self._gpus
            ],
            lets_spares_go=self._spares.are_let_go,
        )

    async def PrepareEngine(
        self, request: wire.PrepareEngineRequest, context: Context
    ) -> wire.PrepareEngineReply:
        async with answering(context):
            parse_checkpoint_id(request.checkpoint_id)
            directory = self._checkpoints / request.checkpoint_id
            if not directory.is_dir():
                return wire.PrepareEngineReply(accepted=False)
            command = PrepareCommand(checkpoint_id=request.checkpoint_id, checkpoint_dir=str(directory))
            ready = self._spares.prepare(command)
            endpoints = [spare.handle.endpoint for spare in ready if spare.handle.endpoint]
            return wire.PrepareEngineReply(accepted=bool(ready), endpoints=endpoints)

    async def KeepWarm(self, request: wire.KeepWarmRequest, context: Context) -> wire.KeepWarmReply:
        async with answering(context):
            await self._spares.keep_for(_kept_for(request, now_s=time.monotonic()))
            return wire.KeepWarmReply()


def _command(request: wire.AttachRequest) -> AttachCommand:
    parse_checkpoint_id(request.checkpoint_id)
    if not request.instance_id or request.epoch == 0 or request.max_concurrency <= 0:
        raise InvalidInput("an attach names an instance, an epoch above 0 and a positive max_concurrency")
    return AttachCommand(
        instance_id=request.instance_id,
        epoch=request.epoch,
        model=request.model,
        checkpoint_id=request.checkpoint_id,
        max_concurrency=request.max_concurrency,
        context_length=request.context_length,
    )


def _kept_for(request: wire.KeepWarmRequest, *, now_s: float) -> KeptFor:
    spare_s = request.spare_s if request.HasField("spare_s") else None
    told = [*request.architecture_s.values(), request.good_for_s, *([] if spare_s is None else [spare_s])]
    if not all(isfinite(one) and one >= 0 for one in told):
        raise InvalidInput("what is worth keeping is told in seconds, from 0 on")
    return KeptFor(
        skeletons_until_s={name: now_s + kept_s for name, kept_s in request.architecture_s.items()},
        spares_until_s=inf if spare_s is None else now_s + spare_s,
        counts_until_s=now_s + request.good_for_s,
    )


def _attach_reply(outcome: AttachOutcome) -> wire.AttachReply:
    attached = outcome.attached
    return wire.AttachReply(
        endpoint=attached.endpoint,
        wait_spare_s=outcome.wait_spare_s,
        map_s=attached.map_s,
        skeleton_s=attached.skeleton_s,
        bind_s=attached.bind_s,
        total_s=outcome.total_s,
        context_length=attached.context_length,
        parameter_bytes=attached.parameter_bytes,
        stream_s=attached.stream_s,
        age_s=time.monotonic() - outcome.ended_s,
        was_ahead=outcome.was_ahead,
    )


def _bound_row(engine: BoundEngine) -> wire.EngineProcess:
    command, handle = engine.command, engine.handle
    return wire.EngineProcess(
        pid=handle.pid if handle is not None else 0,
        state=engine.state.value,
        instance_id=command.instance_id,
        epoch=command.epoch,
        model=command.model,
        checkpoint_id=command.checkpoint_id,
        gpu_indices=engine.gpu_indices,
        endpoint=(handle.endpoint or "") if handle is not None else "",
    )


def _spare_row(spare: Spare) -> wire.EngineProcess:
    return wire.EngineProcess(
        pid=spare.handle.pid,
        state="spare" if spare.is_ready else "starting",
        endpoint=spare.handle.endpoint or "",
    )
