"""The small files of a checkpoint, fetched from any host that holds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from api.host_directory import HostDirectory
from firstlight.domain.errors import EngineGone, FirstlightError, StartTimeout, UnknownCheckpoint
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import StoreClient


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    files: Mapping[str, bytes]
    manifest_digest: str


class FileSource(ABC):
    @abstractmethod
    async def fetch(self, checkpoint_id: str, *, first: str | None) -> CheckpointFiles | None:
        """From host `first` if given, else from any that holds the checkpoint; None if none does."""


class StoreFiles(FileSource):
    """Asks the stores one after the other until one answers."""

    def __init__(self, *, hosts: HostDirectory, channels: Channels) -> None:
        self._hosts = hosts
        self._channels = channels

    async def fetch(self, checkpoint_id: str, *, first: str | None) -> CheckpointFiles | None:
        failure: FirstlightError | None = None
        for host in await self._hosts.holding(checkpoint_id, first=first):
            try:
                reply = await StoreClient(self._channels, host.store_address).get_files(checkpoint_id)
            except UnknownCheckpoint:
                continue
            except (EngineGone, StartTimeout) as error:
                failure = error
                continue
            return CheckpointFiles(dict(reply.files), reply.manifest_digest)
        if failure is not None and first is not None:
            raise failure
        return None
