"""Binds a spare engine to a checkpoint: skeletons built ahead, one attach for good."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from firstlight.domain.errors import AttachFailed, EngineBusy, FirstlightError, StaleEpoch
from gpu_worker.engine.binding import dtype_of, on_device, open_at, tensors_in_arena
from gpu_worker.engine.control import AttachCommand, Attached, EngineConfig, PrepareCommand
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from gpu_worker.engine.state import EngineState
from gpu_worker.engine.step_plan import chunk_tokens_for
from gpu_worker.engine.store_link import Pinned, StoreLink
from native_loader import Checkpoint

log = logging.getLogger("engine.attach")

_MOST_PREPARED = 4


@dataclass(frozen=True, slots=True)
class Prepared:
    """A skeleton and the manifest it will be bound by."""

    skeleton: Skeleton
    checkpoint: Checkpoint


class Attacher:
    """What an engine has prepared, and what it is bound to."""

    def __init__(self, config: EngineConfig, state: EngineState, link: StoreLink, *, endpoint: str) -> None:
        self._config = config
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
            pinned = await self._link.pin(command.checkpoint_id)
        except FirstlightError:
            # Nothing is touched yet: it can still serve another.
            self._state.name, self._state.attachment = "spare", None
            raise
        pinned_s = time.monotonic()
        prepared, was_ready = await self._skeleton_of(command.checkpoint_id, pinned)
        ready_s = time.monotonic()
        parameter_bytes = self._bind(prepared, pinned)
        context_length = min(
            command.context_length or prepared.skeleton.context_length, prepared.skeleton.context_length
        )
        self._serve(prepared.skeleton, command, context_length)
        done_s = time.monotonic()
        return Attached(
            endpoint=self._endpoint,
            map_s=pinned_s - begun_s,
            skeleton_s=0.0 if was_ready else ready_s - pinned_s,
            bind_s=done_s - ready_s,
            total_s=done_s - begun_s,
            context_length=context_length,
            parameter_bytes=parameter_bytes,
        )

    def _bind(self, prepared: Prepared, pinned: Pinned) -> int:
        try:
            tensors = tensors_in_arena(prepared.checkpoint, pinned, self._link.view)
            return prepared.skeleton.bind(on_device(tensors, self._config.device))
        except (RuntimeError, ValueError) as failure:
            raise AttachFailed(f"the checkpoint's bytes could not be bound: {failure}") from failure

    def _serve(self, skeleton: Skeleton, command: AttachCommand, context_length: int) -> None:
        max_concurrency = max(1, command.max_concurrency)
        loop = DecodeLoop(
            skeleton,
            device=self._config.device,
            max_concurrency=max_concurrency,
            max_waiting=self._config.max_waiting,
            context_length=context_length,
            chunk_tokens=self._config.prefill_chunk_tokens or chunk_tokens_for(self._config.device),
            on_crash=_crash,
        )
        self._state.become_ready(
            LocalEngine(loop, max_concurrency=max_concurrency, context_length=context_length)
        )
        # What else was prepared will never be bound here.
        self._prepared.clear()

    async def _skeleton_of(self, checkpoint_id: str, pinned: Pinned) -> tuple[Prepared, bool]:
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
    return Prepared(build_skeleton(directory, dtype=dtype_of(checkpoint), device=device), checkpoint)


def _crash() -> None:
    # Streams end with UNAVAILABLE and are resumed elsewhere; the supervisor sees the exit.
    os._exit(70)
