"""`models` and `checkpoints`: what may be served, and the bytes it is made of."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, func, text
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base, JsonDocument, one_of
from firstlight.domain.lifecycle import ModelState
from firstlight.domain.migration import Transfer


class CheckpointRow(Base):
    """One converted checkpoint. The digest is set by the first conversion anywhere and never changes."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        CheckConstraint("size_bytes > 0", name="size_is_positive"),
        CheckConstraint(
            "(manifest_digest IS NULL) = (size_bytes IS NULL)", name="exact_size_comes_with_digest"
        ),
    )

    checkpoint_id: Mapped[str] = mapped_column(primary_key=True)
    manifest_digest: Mapped[str | None]
    size_bytes: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ModelRow(Base):
    """One deployed model and its settings."""

    __tablename__ = "models"
    __table_args__ = (
        CheckConstraint(one_of("state", ModelState), name="state_is_known"),
        CheckConstraint("gpu_count >= 1", name="needs_a_gpu"),
        CheckConstraint("size_bytes >= 0 AND source_bytes >= 0", name="bytes_not_negative"),
        CheckConstraint("min_instances >= 0 AND max_instances >= min_instances", name="instance_bounds"),
        CheckConstraint("keep_alive_s >= 0", name="keep_alive_not_negative"),
        CheckConstraint("max_concurrency >= 1", name="serves_a_request"),
        CheckConstraint("context_length >= 0", name="context_not_negative"),
        CheckConstraint(one_of("transfer", Transfer), name="transfer_is_known"),
    )

    # A surrogate key: history keeps the name of a deleted model, and the name may be deployed again.
    model_id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    source: Mapped[str]
    source_revision: Mapped[str]
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.checkpoint_id"), index=True)
    source_bytes: Mapped[int]
    # The deployer's estimate, used until the checkpoint's own size is known.
    size_bytes: Mapped[int]
    dtype: Mapped[str]
    gpu_count: Mapped[int]
    context_length: Mapped[int]
    min_instances: Mapped[int]
    max_instances: Mapped[int]
    keep_alive_s: Mapped[float]
    max_concurrency: Mapped[int]
    # A start may make instances of lower priority give way; among equals only idle ones, or by moving.
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    # How a migration brings a request's KV cache to its new host.
    transfer: Mapped[str] = mapped_column(server_default=Transfer.EXACT)
    # Learned seconds to bind an engine, by host class: {"cpu-2c": 0.07}.
    attach_s: Mapped[JsonDocument] = mapped_column(server_default=text("'{}'::jsonb"))
    state: Mapped[str] = mapped_column(server_default=ModelState.ACTIVE)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
