"""Hosts: registration, lease, loss, and what lies on them."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.hosts import FailHostInput, FailHostReceipt, MendInput, MendReceipt
from firstlight.database.records import HostRecord, HostRegistration, InstanceRecord

__all__ = [
    "HostRecord",
    "HostRegistration",
    "fail_host",
    "lease_remaining_s",
    "list_hosts",
    "list_stale_starts",
    "mend_host",
    "register_host",
    "renew_lease",
    "set_placements",
]


async def register_host(session: AsyncSession, registration: HostRegistration, *, lease_s: float) -> int:
    """Join or rejoin the fleet; the number returned fences off every earlier registration."""
    raise NotImplementedError


async def renew_lease(session: AsyncSession, *, host_id: str, registration: int, lease_s: float) -> bool:
    """False: superseded or lost; the host must register again."""
    raise NotImplementedError


async def lease_remaining_s(session: AsyncSession, *, host_id: str, registration: int) -> float | None:
    """Seconds by the database's clock, negative once expired; None: superseded, or marked lost."""
    raise NotImplementedError


async def fail_host(session: AsyncSession, request: FailHostInput) -> FailHostReceipt:
    """Mark the host lost and fail what it served. Idempotent per registration.

    Its starts are left to their workflows, which re-plan them: the host takes no plan any more.
    """
    raise NotImplementedError


async def list_hosts(session: AsyncSession) -> list[HostRecord]:
    """All hosts by id, lost ones included."""
    raise NotImplementedError


async def list_stale_starts(
    session: AsyncSession, *, host_id: str, older_than_s: float
) -> list[InstanceRecord]:
    """Starts on this host (or on lost ones) planned longer ago than that: ask Temporal whether they run."""
    raise NotImplementedError


async def mend_host(
    session: AsyncSession, request: MendInput, *, running_starts: frozenset[str] | None = None
) -> MendReceipt:
    """Make the rows agree with the host's report.

    `running_starts`: instances whose ColdStart is known to run; they are never given up. None: unknown, and
    a start is given up only when far beyond its estimate.
    """
    raise NotImplementedError


async def set_placements(
    session: AsyncSession,
    *,
    host_id: str,
    checkpoint_id: str,
    ssd: bool | None,
    dram: bool | None,
    size_bytes: int,
    manifest_digest: str,
) -> None:
    """Record where the checkpoint lies on the host (None: leave as it is), and its digest when unset.

    Raises: UnknownHost, UnknownCheckpoint, CheckpointMismatch.
    """
    raise NotImplementedError
