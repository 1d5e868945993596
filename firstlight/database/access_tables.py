"""`api_keys` and `audit_log`: who may act, and who did."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Identity, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base, JsonDocument, one_of

KEY_SCOPES = ("inference", "admin")


class ApiKeyRow(Base):
    """A key by its SHA-256; the key itself is never stored."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(one_of("scope", KEY_SCOPES), name="scope_is_known"),
        CheckConstraint("key_hash ~ '^[0-9a-f]{64}$'", name="hash_is_sha256"),
        CheckConstraint("least(requests_per_minute, max_concurrent) >= 1", name="limits_are_positive"),
    )

    key_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    key_hash: Mapped[str] = mapped_column(unique=True)
    scope: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    # None: no limit.
    requests_per_minute: Mapped[int | None]
    max_concurrent: Mapped[int | None]


class KeyUsageRow(Base):
    """What was asked for with one key, of one model, in one hour. `key_id` may be one of the settings."""

    __tablename__ = "key_usage"
    __table_args__ = (
        CheckConstraint(
            "least(requests, refused, prompt_tokens, completion_tokens) >= 0", name="figures_not_negative"
        ),
        Index("ix_key_usage_hour", "hour"),
    )

    key_id: Mapped[str] = mapped_column(primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    requests: Mapped[int]
    # Turned away by the key's own limits.
    refused: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]


class AuditRow(Base):
    """One administrative act. Rows are only ever added."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_subject_at", "subject", "at"),)

    entry_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    actor: Mapped[str]
    act: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[JsonDocument]
