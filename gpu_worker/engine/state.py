"""What one engine process is at a moment, shared by its control connection and its Inference service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from firstlight.domain.errors import Conflict, EngineGone, InstanceDraining, StaleEpoch
from gpu_worker.engine.control import AttachCommand
from gpu_worker.engine.interface import Engine


class EngineState:
    """`spare | attaching | ready | draining`, what is bound, and when the last request ended."""

    def __init__(self) -> None:
        self.name = "spare"
        self.attachment: AttachCommand | None = None
        self.engine: Engine | None = None
        self._active = 0
        self._idle_since_s = time.monotonic()
        self._activity = asyncio.Event()
        self._is_moving_out = False
        self._is_draining = False

    def drain(self) -> None:
        """Take no new request from now on."""
        self.name, self._is_draining = "draining", True

    def become_ready(self, engine: Engine) -> None:
        """Serve from now on; time spent as a spare is not idle time of the instance."""
        self.engine, self.name = engine, "ready"
        self._idle_since_s = time.monotonic()
        self._notify()

    @property
    def active(self) -> int:
        return self._active

    @property
    def idle_s(self) -> float:
        return 0.0 if self._active else time.monotonic() - self._idle_since_s

    def check_epoch(self, epoch: int) -> AttachCommand:
        """Raises: StaleEpoch for any other epoch than this instance's; EngineGone before it is bound."""
        attachment = self.attachment
        if attachment is None:
            raise EngineGone("no model is bound to this engine")
        if epoch != attachment.epoch:
            # A higher one too: then this engine is the one that was replaced.
            raise StaleEpoch(
                f"epoch {epoch} is not this instance's {attachment.epoch}",
                instance_id=attachment.instance_id,
                epoch=epoch,
            )
        return attachment

    def ready_engine(self) -> Engine:
        """Raises: EngineGone, InstanceDraining."""
        if self.name == "draining":
            raise InstanceDraining("this instance takes no new requests")
        if self.engine is None:
            raise EngineGone("the model is not bound yet")
        return self.engine

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts one request as active inside."""
        self._active += 1
        self._notify()
        try:
            yield
        finally:
            self._active -= 1
            self._idle_since_s = time.monotonic()
            self._notify()

    @contextmanager
    def moving_out(self) -> Iterator[Engine]:
        """No new request inside; afterwards as before. Raises: EngineGone, Conflict for a second at once."""
        engine = self.engine
        if engine is None:
            raise EngineGone("the model is not bound yet")
        if self._is_moving_out:
            raise Conflict("a migration of this instance is under way")
        before, self.name, self._is_moving_out = self.name, "draining", True
        try:
            yield engine
        finally:
            self._is_moving_out = False
            # A drain that began meanwhile stays one.
            self.name = before if not self._is_draining else "draining"

    async def wait_idle(self, idle_s: float) -> float:
        """Until there has been no request for `idle_s`; how long it has been then."""
        while True:
            changed = self._activity
            left_s = None if self._active else idle_s - self.idle_s
            if left_s is not None and left_s <= 0:
                return self.idle_s
            try:
                async with asyncio.timeout(left_s):
                    await changed.wait()
            except TimeoutError:
                continue

    def _notify(self) -> None:
        self._activity.set()
        self._activity = asyncio.Event()
