"""API keys and the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.access_tables import KEY_SCOPES
from firstlight.database.plan_writing import new_id
from firstlight.database.records import ApiKeyRecord, AuditRecord, StoredKeys
from firstlight.database.tables import ApiKeyRow, AuditRow
from firstlight.domain.errors import Conflict, InvalidInput
from firstlight.telemetry.redaction import Redaction, hide_in_addresses

REDACTION = Redaction()


async def create_key(
    session: AsyncSession,
    *,
    name: str,
    key_hash: str,
    scope: str,
    expires_at_unix_s: float | None = None,
    requests_per_minute: int | None = None,
    max_concurrent: int | None = None,
) -> ApiKeyRecord:
    """Keep a key by its SHA-256 (hex); scope is inference or admin. A limit of None is none.

    Raises: InvalidInput for another scope; Conflict if the hash is known.
    """
    if scope not in KEY_SCOPES:
        raise InvalidInput(f"scope {scope!r} is not one of {', '.join(KEY_SCOPES)}", scope=scope)
    expires_at = datetime.fromtimestamp(expires_at_unix_s, UTC) if expires_at_unix_s is not None else None
    row = ApiKeyRow(
        key_id=new_id("key"),
        name=name,
        key_hash=key_hash.lower(),
        scope=scope,
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
        max_concurrent=max_concurrent,
    )
    try:
        async with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise Conflict("this API key exists already, or its hash is not a SHA-256") from error
    await session.refresh(row)
    return _key(row)


async def list_keys(session: AsyncSession) -> list[ApiKeyRecord]:
    """All keys, revoked ones included, newest first."""
    return [
        _key(row) for row in await session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at.desc()))
    ]


async def read_stored_keys(session: AsyncSession) -> StoredKeys:
    """What an API admits. Revoked and expired keys count as known: rows are never removed."""
    active = tuple(await list_active_keys(session))
    is_any_known = bool(active) or bool(await session.scalar(select(select(ApiKeyRow).exists())))
    return StoredKeys(active=active, is_any_known=is_any_known)


async def list_active_keys(session: AsyncSession) -> list[ApiKeyRecord]:
    """Every key that is neither revoked nor expired now."""
    rows = await session.scalars(
        select(ApiKeyRow).where(
            ApiKeyRow.revoked_at.is_(None),
            or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > func.now()),
        )
    )
    return [_key(row) for row in rows]


async def revoke_key(session: AsyncSession, key_id: str) -> bool:
    """False: no such key, or revoked already."""
    revoked = await session.execute(
        update(ApiKeyRow)
        .where(ApiKeyRow.key_id == key_id, ApiKeyRow.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(ApiKeyRow.key_id)
    )
    return revoked.scalar_one_or_none() is not None


async def audit(
    session: AsyncSession, *, actor: str, act: str, subject: str, detail: Mapping[str, object] | None = None
) -> None:
    """Add one line to the audit log, in the caller's transaction: no act without its line.

    What looks like a credential is hidden: lines are kept, and read by whoever may read the log.
    """
    session.add(
        AuditRow(
            actor=actor,
            act=hide_in_addresses(act),
            subject=hide_in_addresses(subject),
            detail=_without_secrets(dict(detail or {})),
        )
    )
    await session.flush()


# Any: JSON.
def _without_secrets(value: Any) -> Any:
    if isinstance(value, str):
        return REDACTION.hide(hide_in_addresses(value))
    if isinstance(value, Mapping):
        return {_without_secrets(name): _without_secrets(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return value


async def list_audit(
    session: AsyncSession,
    *,
    subject: str | None = None,
    actor: str | None = None,
    since_unix_s: float | None = None,
    limit: int = 100,
) -> list[AuditRecord]:
    """The latest entries, newest first."""
    query = select(AuditRow).order_by(AuditRow.at.desc(), AuditRow.entry_id.desc()).limit(limit)
    if subject is not None:
        query = query.where(AuditRow.subject == subject)
    if actor is not None:
        query = query.where(AuditRow.actor == actor)
    if since_unix_s is not None:
        query = query.where(AuditRow.at >= datetime.fromtimestamp(since_unix_s, UTC))
    return [
        AuditRecord(
            at_unix_s=row.at.timestamp(), actor=row.actor, act=row.act, subject=row.subject, detail=row.detail
        )
        for row in await session.scalars(query)
    ]


def _key(row: ApiKeyRow) -> ApiKeyRecord:
    return ApiKeyRecord(
        key_id=row.key_id,
        name=row.name,
        key_hash=row.key_hash,
        scope=row.scope,
        created_at_unix_s=row.created_at.timestamp(),
        expires_at_unix_s=row.expires_at.timestamp() if row.expires_at else None,
        revoked_at_unix_s=row.revoked_at.timestamp() if row.revoked_at else None,
        requests_per_minute=row.requests_per_minute,
        max_concurrent=row.max_concurrent,
    )
