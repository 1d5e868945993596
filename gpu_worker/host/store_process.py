"""The store as the supervisor sees it: a kept process, its address, and what it holds."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from firstlight.domain.errors import FirstlightError
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import StoreClient
from gpu_worker.host.kept_process import KeptProcess
from gpu_worker.store.config import StoreConfig

log = logging.getLogger("host.store")

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a serving store is reached, as it wrote it."""

    address: str
    socket: str
    pid: int
    peer_endpoint: str = ""


class StoreProcess:
    """Starts the store, restarts it on the same port, and tells through `ready` whether it serves."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self.ready = asyncio.Event()
        self.address: StoreAddress | None = None
        self._kept = KeptProcess(name="store", argv=self._argv, on_exit=self.ready.clear)
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._kept.pid

    def start(self) -> None:
        self._kept.start()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self, *, grace_s: float) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await self._kept.stop(grace_s=grace_s)

    async def checkpoint_ids(self, channels: Channels) -> list[str]:
        """What is on SSD, most recently used first; nothing while the store is away."""
        if self.address is None or not self.ready.is_set():
            return []
        try:
            inventory = await StoreClient(channels, self.address.address).inventory(timeout_s=2.0)
        except FirstlightError:
            return []
        present = [one for one in inventory.checkpoints if one.on_ssd]
        return [one.checkpoint_id for one in sorted(present, key=lambda one: -one.last_used_unix_s)]

    def _argv(self) -> list[str]:
        config = self._config
        if self.address is not None:
            # The address was published: a store that comes back elsewhere would be lost to everyone.
            config = replace(config, port=_port(self.address.address))
            if self.address.peer_endpoint:
                config = replace(config, peer_port=_port(self.address.peer_endpoint))
        return [sys.executable, "-m", "gpu_worker.store", "--config-json", config.to_json()]

    async def _watch(self) -> None:
        """Set `ready` whenever the process that lives now has said where it serves."""
        while True:
            pid = self._kept.pid
            if pid is not None and not self.ready.is_set():
                said = _read(self._config.address_file)
                if said is not None and said.pid == pid:
                    self.address = said
                    self.ready.set()
                    log.info("store serves address=%s pid=%d", said.address, said.pid)
            await asyncio.sleep(POLL_S)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _read(path: Path) -> StoreAddress | None:
    try:
        return StoreAddress(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
