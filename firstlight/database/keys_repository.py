"""API keys and the audit log."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.records import ApiKeyRecord, AuditRecord


async def create_key(
    session: AsyncSession, *, name: str, key_hash: str, scope: str, expires_at_unix_s: float | None = None
) -> ApiKeyRecord:
    """Keep a key by its SHA-256 (hex); scope is inference or admin. Raises: Conflict if the hash is known."""
    raise NotImplementedError


async def list_keys(session: AsyncSession) -> list[ApiKeyRecord]:
    """All keys, revoked ones included, newest first."""
    raise NotImplementedError


async def list_active_hashes(session: AsyncSession) -> dict[str, str]:
    """Hash → scope of every key that is neither revoked nor expired now."""
    raise NotImplementedError


async def revoke_key(session: AsyncSession, key_id: str) -> bool:
    """False: no such key, or revoked already."""
    raise NotImplementedError


async def audit(
    session: AsyncSession, *, actor: str, act: str, subject: str, detail: Mapping[str, object] | None = None
) -> None:
    """Add one line to the audit log, in the caller's transaction."""
    raise NotImplementedError


async def list_audit(
    session: AsyncSession, *, subject: str | None = None, limit: int = 100
) -> list[AuditRecord]:
    """The latest entries, newest first."""
    raise NotImplementedError
