"""Binds a spare engine to a checkpoint: skeletons built ahead, one attach for good.

A checkpoint that is still loading is bound at once over the memory its bytes come to; the model then waits,
part by part, for what it computes with. Should the rest not come, requests end with an error and so does the
engine: it never answers from memory that is not whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from firstlight.domain.errors import (
    AttachFailed,
    CheckpointMissing,
    EngineBusy,
    EngineGone,
    FirstlightError,
    LargerThanPool,
    StaleEpoch,
)
from gpu_worker.engine.binding import bind_ahead, buffers_in_arena, dtype_of, open_at, tensors_in_arena
from gpu_worker.engine.bound_ahead import BoundAhead
from gpu_worker.engine.constraint import Grammars
from gpu_worker.engine.control import AttachCommand, Attached, EngineConfig, PrepareCommand
from gpu_worker.engine.gpu_weights import GpuPlace, GpuWeights, say_outcome
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from gpu_worker.engine.state import EngineState
from gpu_worker.engine.step_plan import chunk_tokens_for
from gpu_worker.engine.store_link import Pinned, StoreLink, Streaming
from gpu_worker.engine.streamed import stream_in
from gpu_worker.engine.weights_gate import WeightsGate
from native_loader import Checkpoint, ProgressBoard

log = logging.getLogger("engine.attach")

# A start is asked at once by whom it was made for. An engine that is not has the time to look at its weights.
UNASKED_AFTER_S = 0.05
_MOST_PREPARED = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """A skeleton and the manifest it will be bound by; with `ahead`, all is bound but the memory's place."""

    skeleton: Skeleton
    checkpoint: Checkpoint
    ahead: BoundAhead | None
    grammars: Grammars


class Attacher:
    """What an engine has prepared, and what it is bound to."""

    def __init__(
        self,
        config: EngineConfig,
        state: EngineState,
        link: StoreLink,
        *,
        endpoint: str,
        on_weights_lost: Callable[[EngineGone], None],
        gpu: GpuPlace | None = None,
    ) -> None:
        self._config = config
        self._gpu = gpu
        self._weights: GpuWeights | None = None
        self._telling: asyncio.Task[None] | None = None
        self._on_weights_lost = on_weights_lost
        self._home = asyncio.get_running_loop()
        self._arriving: asyncio.Task[None] | None = None
        self._gate: WeightsGate | None = None
        self._state = state
        self._link = link
        self._endpoint = endpoint
        self._prepared: dict[str, asyncio.Task[Prepared]] = {}
        self._attaching: asyncio.Task[Attached] | None = None

    async def prepare(self, command: PrepareCommand) -> float:
        """Seconds until the skeleton stood; 0 if it did. Raises: AttachFailed, CheckpointError."""
        begun_s = time.monotonic()
        known = self._prepared.get(command.checkpoint_id)
        was_ready = known is not None and known.done()
        await self._skeleton(command.checkpoint_id, Path(command.checkpoint_dir))
        return 0.0 if was_ready else time.monotonic() - begun_s

    async def attach(self, command: AttachCommand) -> Attached:
        """Raises: StaleEpoch, EngineBusy, AttachFailed, CheckpointError, and what the store refuses with."""
        if (bound := self._state.attachment) is not None and self._attaching is not None:
            if (command.instance_id, command.epoch) == (bound.instance_id, bound.epoch):
                return await asyncio.shield(self._attaching)
            if command.epoch < bound.epoch:
                raise StaleEpoch(f"epoch {command.epoch} is older than {bound.epoch}", epoch=command.epoch)
            raise EngineBusy(f"this engine serves {bound.instance_id}", instance_id=bound.instance_id)
        self._state.name, self._state.attachment = "attaching", command
        self._attaching = asyncio.ensure_future(self._attach(command))
        return await asyncio.shield(self._attaching)

    async def _attach(self, command: AttachCommand) -> Attached:
        begun_s = time.monotonic()
        try:
            pinned = await self._pin(command.checkpoint_id)
        except FirstlightError:
            # Nothing is touched yet: it can still serve another.
            self._state.name, self._state.attachment = "spare", None
            raise
        pinned_s = time.monotonic()
        try:
            prepared, was_ready = await self._skeleton_of(command.checkpoint_id, pinned)
        except CheckpointMissing:
            # What had landed was put in its place on SSD meanwhile, so that its folder has another name.
            pinned = await self._pin(command.checkpoint_id)
            prepared, was_ready = await self._skeleton_of(command.checkpoint_id, pinned)
        ready_s = time.monotonic()
        tensors, board = await self._tensors(command, prepared, pinned)
        bound_s = time.monotonic() if isinstance(pinned, Streaming) else ready_s
        if board is not None:
            self._follow(board, prepared)
        parameter_bytes = self._bind(prepared, tensors, pinned)
        context_length = min(
            command.context_length or prepared.skeleton.context_length, prepared.skeleton.context_length
        )
        self._serve(prepared, command, context_length)
        done_s = time.monotonic()
        return Attached(
            endpoint=self._endpoint,
            map_s=pinned_s - begun_s,
            skeleton_s=0.0 if was_ready else ready_s - pinned_s,
            bind_s=done_s - bound_s,
            stream_s=bound_s - ready_s if isinstance(pinned, Streaming) else 0.0,
            total_s=done_s - begun_s,
            context_length=context_length,
            parameter_bytes=parameter_bytes,
        )

    async def _pin(self, checkpoint_id: str) -> Pinned | Streaming:
        try:
            return await self._link.pin(checkpoint_id, while_loading=True)
        except LargerThanPool:
            return await self._link.stream(checkpoint_id)

    async def _tensors(
        self, command: AttachCommand, prepared: Prepared, pinned: Pinned | Streaming
    ) -> tuple[Mapping[str, torch.Tensor] | None, ProgressBoard | None]:
        """Where the model computes from, None if bound ahead; and what of it is there, None when all is."""
        if isinstance(pinned, Streaming) and self._gpu is not None:
            self._weights = await self._gpu.stream(prepared.checkpoint, pinned, self._link)
            return self._weights.tensors, None
        if isinstance(pinned, Streaming):
            return await stream_in(prepared.checkpoint, pinned, self._link), None
        if self._gpu is None and prepared.ahead is not None:
            return None, pinned.board
        if self._gpu is None:
            return tensors_in_arena(prepared.checkpoint, pinned, self._link.view), pinned.board
        name = command.checkpoint_id
        self._weights = await self._gpu.put(name, prepared.checkpoint, pinned, self._link)
        self._telling = asyncio.ensure_future(say_outcome(self._weights, name, self._link))
        return self._weights.tensors, self._weights.board

    def _follow(self, board: ProgressBoard, prepared: Prepared) -> None:
        """Let the model wait for its bytes where it needs them. Raises: AttachFailed."""
        checkpoint = prepared.checkpoint
        needed = checkpoint.manifest.prefix_bytes()
        if board.bytes_total != checkpoint.size_bytes:
            raise AttachFailed(f"the load brings {board.bytes_total} bytes of {checkpoint.size_bytes}")
        gate = WeightsGate(board, is_source_lost=lambda: self._link.is_lost)
        gate.install(prepared.skeleton.model, needed)
        self._gate = gate
        self._arriving = asyncio.ensure_future(self._until_there(gate, board))

    async def _until_there(self, gate: WeightsGate, board: ProgressBoard) -> None:
        """An engine that nobody asks anything must end too when its weights do not come."""
        try:
            await asyncio.to_thread(gate.wait, board.bytes_total)
            log.info("all %d bytes of weights are there", board.bytes_total)
        except EngineGone as failure:
            self._on_weights_lost(failure)

    def _bind(
        self, prepared: Prepared, tensors: Mapping[str, torch.Tensor] | None, pinned: Pinned | Streaming
    ) -> int:
        try:
            if tensors is not None:
                return prepared.skeleton.bind(tensors)
            assert prepared.ahead is not None and isinstance(pinned, Pinned), "what is streamed has tensors"
            prepared.ahead.fill(buffers_in_arena(pinned, self._link.view))
            return prepared.ahead.size_bytes
        except (RuntimeError, ValueError) as failure:
            raise AttachFailed(f"the checkpoint's bytes could not be bound: {failure}") from failure

    def _serve(self, prepared: Prepared, command: AttachCommand, context_length: int) -> None:
        max_concurrency = max(1, command.max_concurrency)
        loop = DecodeLoop(
            prepared.skeleton,
            device=self._config.device,
            max_concurrency=max_concurrency,
            max_waiting=self._config.max_waiting,
            context_length=context_length,
            chunk_tokens=self._config.prefill_chunk_tokens or chunk_tokens_for(self._config.device),
            on_crash=_crash,
            on_lost=self._lose_weights,
            is_loading=lambda: self._gate is not None and self._gate.is_loading,
            stood_still_s=lambda: self._gate.waited_s if self._gate is not None else 0.0,
        )
        self._state.become_ready(
            LocalEngine(
                loop,
                max_concurrency=max_concurrency,
                context_length=context_length,
                grammars=prepared.grammars,
            )
        )
        # What else was prepared will never be bound here.
        self._prepared.clear()
        self._home.call_later(UNASKED_AFTER_S, self._warm, loop)

    def _warm(self, loop: DecodeLoop) -> None:
        """Whoever comes later, with a stream from elsewhere perhaps, finds the weights near."""
        if self._gate is None or not self._gate.is_loading:
            loop.warm()

    def _lose_weights(self, why: EngineGone) -> None:
        """From the decode loop's thread."""
        self._home.call_soon_threadsafe(self._on_weights_lost, why)

    async def _skeleton_of(self, checkpoint_id: str, pinned: Pinned | Streaming) -> tuple[Prepared, bool]:
        """The skeleton that fits what is pinned, and whether it stood ready."""
        known = self._prepared.get(checkpoint_id)
        was_ready = known is not None and known.done()
        prepared = await self._skeleton(checkpoint_id, pinned.directory)
        digest = prepared.checkpoint.manifest.digest
        if pinned.manifest_digest in (None, digest):
            return prepared, was_ready
        # Prepared before the checkpoint was fetched anew.
        self._prepared.pop(checkpoint_id, None)
        return await self._skeleton(checkpoint_id, pinned.directory), False

    async def _skeleton(self, checkpoint_id: str, directory: Path) -> Prepared:
        task = self._prepared.get(checkpoint_id)
        if task is None or (task.done() and task.exception() is not None):
            if len(self._prepared) >= _MOST_PREPARED:
                del self._prepared[next(iter(self._prepared))]
            task = asyncio.ensure_future(asyncio.to_thread(_prepare, directory, self._config.device))
            self._prepared[checkpoint_id] = task
        return await asyncio.shield(task)


def _prepare(directory: Path, device: str) -> Prepared:
    checkpoint = open_at(directory)
    skeleton = build_skeleton(directory, dtype=dtype_of(checkpoint), device=device)
    grammars = Grammars(
        directory, vocabulary_size=skeleton.vocabulary_size, eos_token_ids=skeleton.eos_token_ids
    )
    ahead = bind_ahead(skeleton, checkpoint) if device == "cpu" else None
    return Prepared(skeleton, checkpoint, ahead, grammars)


def _crash() -> None:
    # Streams end with UNAVAILABLE and are resumed elsewhere; the supervisor sees the exit.
    os._exit(70)
