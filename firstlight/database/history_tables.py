"""`decisions`, `startup_observations` and `migrations`: why something was done, and what came of it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base, JsonDocument, JsonPairs, JsonRows, one_of
from firstlight.domain.fleet import Tier


class DecisionRow(Base):
    """One answer of the scheduler, with every candidate it looked at."""

    __tablename__ = "decisions"
    __table_args__ = (
        CheckConstraint(one_of("kind", ("place", "migrate", "wait", "reject")), name="kind_is_known"),
        CheckConstraint(
            "kind NOT IN ('place', 'migrate') OR (host_id IS NOT NULL AND instance_id IS NOT NULL "
            "AND epoch IS NOT NULL AND estimate IS NOT NULL)",
            name="place_is_complete",
        ),
        Index("ix_decisions_model_decided_at", "model", "decided_at"),
        Index("ix_decisions_decided_at", "decided_at"),
        Index("ix_decisions_instance_id", "instance_id"),
    )

    decision_id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str]
    model: Mapped[str]
    kind: Mapped[str]
    reason: Mapped[str]
    host_id: Mapped[str | None]
    instance_id: Mapped[str | None]
    epoch: Mapped[int | None]
    gpu_indices: Mapped[list[int]] = mapped_column(ARRAY(BIGINT))
    # {"queue_s": …, "download_s": …, "load_s": …, "attach_s": …, "control_s": …, "tier": …}
    estimate: Mapped[JsonDocument | None]
    # [{"host_id": …, "gpu_indices": […], "estimate": {…} | null, "reason": … | null}, …]
    candidates: Mapped[JsonRows]
    # Instances that give way to the start, as its plan names them.
    victims: Mapped[JsonRows] = mapped_column(server_default=text("'[]'::jsonb"))
    deadline_s: Mapped[float | None]
    # The decision whose plan failed, if this one replaces it.
    replaces: Mapped[str | None] = mapped_column(unique=True)
    decided_at: Mapped[datetime] = mapped_column(server_default=func.now())


class StartupObservationRow(Base):
    """Predicted beside actual, in seconds, for one instance's start."""

    __tablename__ = "startup_observations"
    __table_args__ = (
        CheckConstraint(one_of("tier", Tier), name="tier_is_known"),
        Index("ix_startup_observations_host_id_recorded_at", "host_id", "recorded_at"),
        Index("ix_startup_observations_model_recorded_at", "model", "recorded_at"),
        Index("ix_startup_observations_recorded_at", "recorded_at"),
    )

    instance_id: Mapped[str] = mapped_column(
        ForeignKey("instances.instance_id", ondelete="CASCADE"), primary_key=True
    )
    model: Mapped[str]
    # All below are null until the start has been recorded; the first token may be known before.
    decision_id: Mapped[str | None]
    host_id: Mapped[str | None]
    host_class: Mapped[str | None]
    tier: Mapped[str | None]
    plans_tried: Mapped[int | None]
    size_bytes: Mapped[int | None]
    bytes_moved: Mapped[int | None]
    # Seconds since the Unix epoch, on the host's clock.
    moving_at_unix_s: Mapped[float | None]
    predicted_queue_s: Mapped[float | None]
    predicted_download_s: Mapped[float | None]
    predicted_load_s: Mapped[float | None]
    predicted_attach_s: Mapped[float | None]
    predicted_control_s: Mapped[float | None]
    predicted_free_s: Mapped[float | None]
    predicted_total_s: Mapped[float | None]
    queue_s: Mapped[float | None]
    download_s: Mapped[float | None]
    load_s: Mapped[float | None]
    attach_s: Mapped[float | None]
    control_s: Mapped[float | None]
    free_s: Mapped[float | None]
    total_s: Mapped[float | None]
    # Engine ready → first token, and client's request → first token.
    first_token_s: Mapped[float | None]
    request_to_first_token_s: Mapped[float | None]
    # Of the first token's seconds, those the engine computed for.
    prefill_s: Mapped[float | None]
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.now())


class MigrationRow(Base):
    """One live migration of an instance to another host."""

    __tablename__ = "migrations"
    __table_args__ = (
        CheckConstraint(
            one_of("state", ("running", "completed", "cancelled", "failed")), name="state_is_known"
        ),
        CheckConstraint(
            "least(requests_moved, rounds, tokens_moved, bytes_moved, start_s, move_s, pause_s) >= 0",
            name="figures_not_negative",
        ),
        CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended_has_a_time"),
        CheckConstraint("source_instance_id <> destination_instance_id", name="goes_elsewhere"),
        Index("ix_migrations_source_instance_id", "source_instance_id"),
        Index("ix_migrations_started_at", "started_at"),
        # Two at once would hand the same requests to two destinations.
        Index(
            "uq_migrations_one_at_a_time",
            "source_instance_id",
            unique=True,
            postgresql_where=text("state = 'running'"),
        ),
    )

    migration_id: Mapped[str] = mapped_column(primary_key=True)
    source_instance_id: Mapped[str] = mapped_column(ForeignKey("instances.instance_id", ondelete="CASCADE"))
    destination_instance_id: Mapped[str] = mapped_column(
        ForeignKey("instances.instance_id", ondelete="CASCADE"), index=True
    )
    state: Mapped[str]
    # Counts the attempts an operator has granted after failures.
    attempt: Mapped[int] = mapped_column(server_default=text("1"))
    reason: Mapped[str]
    transfer: Mapped[str]
    # Zeros until it has ended.
    requests_moved: Mapped[int] = mapped_column(server_default=text("0"))
    rounds: Mapped[int] = mapped_column(server_default=text("0"))
    tokens_moved: Mapped[int] = mapped_column(server_default=text("0"))
    bytes_moved: Mapped[int] = mapped_column(server_default=text("0"))
    # Seconds until the destination was ready, and of moving the requests.
    start_s: Mapped[float] = mapped_column(server_default=text("0"))
    move_s: Mapped[float] = mapped_column(server_default=text("0"))
    # Longest time any one stream stood still at the source.
    pause_s: Mapped[float] = mapped_column(server_default=text("0"))
    # [[tokens, seconds], …] of single requests: what estimates of moves learn from.
    observations: Mapped[JsonPairs] = mapped_column(server_default=text("'[]'"))
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]
    failure: Mapped[str | None]
