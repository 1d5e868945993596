"""The bytes of a start on their way into DRAM: by a load from SSD, or by a download that lands there."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from activities.heartbeat import Heart, Progress
from firstlight.contracts.starts import CheckpointRef
from firstlight.domain.errors import LargerThanPool
from firstlight.rpc.clients import StoreClient

# Shows that the checkpoint's bytes themselves did not move in this start.
RESIDENT = "dram"
# Bytes that came straight into DRAM, past the SSD.
LANDED = ("remote", "peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Seconds per phase until the last byte was in DRAM; `ended_s` of the monotonic clock."""

    queue_s: float
    download_s: float
    load_s: float
    tier: str
    bytes_moved: int
    moving_at_unix_s: float
    ended_s: float
    # Larger than the pool: the engine brings it into its own memory as it attaches.
    is_streamed: bool = False
    # Stood still until there was room in memory.
    waited_s: float = 0.0


class Arriving:
    """One checkpoint's way to DRAM. `is_known` is set once the store knows of it: readers may ask for it."""

    def __init__(
        self,
        store: StoreClient,
        checkpoint: CheckpointRef,
        *,
        heart: Heart,
        fetch: bool,
        since_unix_s: float = 0.0,
    ) -> None:
        """Bytes that began to move after `since_unix_s` are this start's, though a hint set them going."""
        self._store = store
        self._checkpoint = checkpoint
        self._heart = heart
        self._fetch = fetch
        self._since_unix_s = since_unix_s
        # Where a download that has ended had its bytes from; empty while none has, or it found them here.
        self._fetched_from = ""
        self.is_known = asyncio.Event()

    async def run(self, earlier: Progress | None) -> Arrived:
        """Raises: FirstlightError, whatever ended the download or the load."""
        if not self._fetch:
            self.is_known.set()
            return await self._load(earlier)
        loading = asyncio.ensure_future(self._load_once_known(earlier))
        fetching = asyncio.ensure_future(self._download())
        try:
            await asyncio.wait({loading, fetching}, return_when=asyncio.FIRST_COMPLETED)
            if fetching.done() and not loading.done():
                # Its failure tells more than that of the load it carried.
                fetching.result()
            return await loading
        finally:
            # Whoever leaves a download does not stop it: what is in DRAM still has to reach the SSD.
            for task in (loading, fetching):
                task.cancel()
            await asyncio.gather(loading, fetching, return_exceptions=True)

    async def _download(self) -> None:
        checkpoint = self._checkpoint
        async for message in self._store.download(
            checkpoint_id=checkpoint.checkpoint_id,
            source=checkpoint.source,
            dtype=checkpoint.dtype,
            expected_digest=checkpoint.manifest_digest,
            into_dram=True,
            peer_endpoints=checkpoint.peer_endpoints,
        ):
            self.is_known.set()
            if self._heart.progress.tier == "":
                self._heart.note(bytes_done=message.bytes_done, bytes_total=message.bytes_total)
            if message.manifest_digest and not message.was_present:
                self._fetched_from = "peer" if message.came_from_peer else "remote"

    async def _load_once_known(self, earlier: Progress | None) -> Arrived:
        await self.is_known.wait()
        return await self._load(earlier)

    async def _load(self, earlier: Progress | None) -> Arrived:
        heart, began_unix_s = self._heart, time.time()
        heart.note(phase="load")
        if not self._fetch:
            # A download counts its source's bytes, until those of the checkpoint itself come.
            heart.note(bytes_total=self._checkpoint.size_bytes)
        try:
            async for message in self._store.load(
                self._checkpoint.checkpoint_id, since_unix_s=self._since_unix_s
            ):
                heart.note(
                    bytes_done=message.bytes_done,
                    bytes_total=message.bytes_total,
                    queue_s=message.queue_s,
                    load_s=message.elapsed_s,
                    tier=message.from_tier,
                    moving_at_unix_s=message.moving_at_unix_s,
                )
        except LargerThanPool:
            return self._to_be_streamed(began_unix_s)
        if heart.progress.tier == RESIDENT and earlier is not None and earlier.tier not in ("", RESIDENT):
            # The bytes came while a dead attempt waited for them: its figures are the true ones.
            heart.note(
                queue_s=earlier.queue_s,
                load_s=earlier.load_s,
                tier=earlier.tier,
                moving_at_unix_s=earlier.moving_at_unix_s,
            )
        return self._arrived(heart.progress, began_unix_s)

    def _to_be_streamed(self, began_unix_s: float) -> Arrived:
        fetched_s = time.time() - began_unix_s if self._fetched_from else 0.0
        return Arrived(
            queue_s=0.0,
            download_s=fetched_s,
            load_s=0.0,
            tier=self._fetched_from or "ssd",
            bytes_moved=self._checkpoint.size_bytes,
            moving_at_unix_s=time.time(),
            ended_s=time.monotonic(),
            is_streamed=True,
        )

    def _arrived(self, done: Progress, began_unix_s: float) -> Arrived:
        has_landed = done.tier in LANDED
        # Both of this host's clock: what passed before the first byte reached DRAM was the download's.
        before_s = max(0.0, done.moving_at_unix_s - began_unix_s - done.queue_s)
        if not has_landed and not self._fetched_from:
            before_s = 0.0
        return Arrived(
            queue_s=done.queue_s,
            download_s=before_s + (done.load_s if has_landed else 0.0),
            load_s=0.0 if has_landed else done.load_s,
            tier=done.tier if has_landed else self._fetched_from or done.tier,
            bytes_moved=0 if done.tier == RESIDENT else done.bytes_total,
            moving_at_unix_s=done.moving_at_unix_s,
            ended_s=time.monotonic(),
        )
