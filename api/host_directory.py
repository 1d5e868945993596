"""Addresses of GPU hosts, and which of them hold a checkpoint; asked of Postgres only on the cold path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from firstlight.database.connection import Database
from firstlight.database.hosts_repository import HostRecord, list_hosts
from firstlight.domain.lifecycle import HostState, PlacementState


@dataclass(frozen=True, slots=True)
class HostAddresses:
    host_id: str
    host_address: str
    store_address: str


class HostDirectory:
    """Addresses are cached: a stale one costs a hint, which is nothing, or one retry with a fresh one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, HostAddresses] = {}

    async def of(self, host_id: str) -> HostAddresses | None:
        """Where to reach this host. Raises: DatabaseUnavailable if it is not known and cannot be asked."""
        if host_id not in self._known:
            await self.refresh()
        return self._known.get(host_id)

    def learn(self, addresses: Mapping[str, tuple[str, str]]) -> None:
        """What was just read anyway: (supervisor, store) by host."""
        self._known = {
            host_id: HostAddresses(host_id, host_address, store_address)
            for host_id, (host_address, store_address) in addresses.items()
        }

    def some(self, at_most: int) -> list[HostAddresses]:
        """Hosts whose addresses are known."""
        return list(self._known.values())[:at_most]

    def forget(self, stale: HostAddresses) -> None:
        """Nobody answers there: read the address anew the next time."""
        if self._known.get(stale.host_id) == stale:
            del self._known[stale.host_id]

    async def holding(self, checkpoint_id: str, *, first: str | None) -> list[HostAddresses]:
        """Hosts whose store has the checkpoint ready; host `first` leads whatever its row says."""
        hosts = [host for host in await self.refresh() if host.state is not HostState.LOST]
        chosen = [host for host in hosts if host.host_id == first or _holds(host, checkpoint_id)]
        chosen.sort(key=lambda host: (host.host_id != first, host.host_id))
        return [_addresses(host) for host in chosen]

    async def refresh(self) -> list[HostRecord]:
        async with self._database.session() as session:
            hosts = await list_hosts(session)
        self._known = {host.host_id: _addresses(host) for host in hosts}
        return hosts


def _addresses(host: HostRecord) -> HostAddresses:
    return HostAddresses(host.host_id, host.host_address, host.store_address)


def _holds(host: HostRecord, checkpoint_id: str) -> bool:
    return any(
        placement.checkpoint_id == checkpoint_id and placement.state is PlacementState.READY
        for placement in host.placements
    )
