"""The GPUs of this host as the store uses them: a context on each, and the arena pinned for copies to all.

Both take seconds, so both happen behind the store's start. A host whose driver does not answer serves on: its
engines then copy for themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from threading import Thread

from firstlight.domain.errors import FirstlightError, GpuError, GpuUnavailable, InvalidInput
from native_loader import Arena, CudaDriver, GpuDevice, GpuPinning

log = logging.getLogger("store.gpu")

# A piece serves as soon as it is pinned, and a store that ends waits for the one under way. Half a second.
PIN_PIECE_BYTES = 4 << 30


class GpuDevices:
    """Belongs to the store; `device` may be called from its event loop, `pin` from a thread of its own."""

    def __init__(self, *, library: str, arena: Arena) -> None:
        self._library = library
        self._arena = arena
        self._opened: Future[dict[str, GpuDevice]] = Future()
        self._broken: dict[str, str] = {}
        self.pinning: GpuPinning | None = None

    def start(self) -> None:
        """Begin to open them all."""
        # A daemon: a driver that hangs must not hold up the store's end.
        Thread(target=self._open, name="gpu-open", daemon=True).start()

    async def device(self, uuid: str) -> GpuDevice:
        """Waits for the driver's start. Raises: GpuUnavailable, and why the driver did not start."""
        devices = await asyncio.shield(asyncio.wrap_future(self._opened))
        if uuid not in devices:
            raise GpuUnavailable(f"the store sees no GPU {uuid}", gpu=uuid)
        if uuid in self._broken:
            raise GpuUnavailable(f"GPU {uuid} failed in the store before: {self._broken[uuid]}", gpu=uuid)
        return devices[uuid]

    async def first(self) -> GpuDevice:
        """As `device`, of the first one."""
        devices = await asyncio.shield(asyncio.wrap_future(self._opened))
        return await self.device(next(iter(devices)))

    def condemn(self, uuid: str, failure: GpuError) -> None:
        """Use it no more: most errors of a copy leave a context that answers nothing else from then on."""
        self._broken[uuid] = failure.message
        log.error("gpu=%s is not used by this store any more: %s", uuid, failure.message)

    def pin(self) -> None:
        """Register the arena with the driver; blocks until that has ended, well or not."""
        began = time.monotonic()
        try:
            devices = self._opened.result()
            # Registered as portable: through one context for all of them.
            first = next(iter(devices.values()))
            self.pinning = GpuPinning(first, self._arena, piece_bytes=PIN_PIECE_BYTES)
        except FirstlightError:
            return  # said when it was opened
        try:
            self.pinning.wait()
            pinned, refusal = self.pinning.pinned_bytes, self.pinning.refusal
        except InvalidInput:
            return  # closed meanwhile: the store ends
        if refusal is not None:
            log.warning(
                "%d of %d bytes of the arena are pinned, the rest goes through a small pinned ring: %s",
                pinned,
                self._arena.size_bytes,
                refusal,
            )
        log.info("arena pinned bytes=%d in_s=%.2f", pinned, time.monotonic() - began)

    def close(self) -> None:
        """Take the registration back; blocks until the piece under way is done."""
        if self.pinning is not None:
            self.pinning.close()

    def _open(self) -> None:
        began = time.monotonic()
        try:
            driver = CudaDriver(self._library)
            found = driver.gpus()
            if not found:
                raise GpuUnavailable("the CUDA driver shows no GPU")
            self._opened.set_result({facts.uuid: driver.open(facts.index) for facts in found})
        except FirstlightError as failure:
            log.error("no GPU can be used by the store, engines copy for themselves: %s", failure.message)
            self._opened.set_exception(failure)
            return
        names = ", ".join(facts.name for facts in found)
        log.info("gpus=%d (%s) opened in_s=%.2f", len(found), names, time.monotonic() - began)
