"""`instances`, `reservations` and `promises`: who runs where, which GPU is whose, and whose it is next."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Sequence,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base, one_of
from firstlight.domain.lifecycle import InstanceState

# Every reservation takes the next value; whoever carries a lower one has been superseded.
FENCING_EPOCH = Sequence("fencing_epoch", metadata=Base.metadata)

LIVE = frozenset({InstanceState.STARTING, InstanceState.READY, InstanceState.DRAINING})
_IS_LIVE = one_of("state", [state for state in InstanceState if state in LIVE])


class InstanceRow(Base):
    """One run of a model, from decision to end; kept as history afterwards."""

    __tablename__ = "instances"
    # An update reads `is_live` back at once: an async session cannot fetch it when it is asked for.
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012  as SQLAlchemy reads it
    __table_args__ = (
        CheckConstraint(one_of("state", InstanceState), name="state_is_known"),
        CheckConstraint("epoch >= 1", name="epoch_is_positive"),
        CheckConstraint("gpu_count >= 1", name="needs_a_gpu"),
        CheckConstraint(
            "state NOT IN ('ready', 'draining') OR endpoint IS NOT NULL", name="served_has_endpoint"
        ),
        CheckConstraint(
            "state NOT IN ('ready', 'draining') OR ready_at IS NOT NULL", name="served_was_ready"
        ),
        CheckConstraint("state <> 'starting' OR endpoint IS NULL", name="starting_has_no_endpoint"),
        CheckConstraint("is_live = (ended_at IS NULL)", name="ended_has_a_time"),
        CheckConstraint("state <> 'failed' OR failure_code IS NOT NULL", name="failed_says_why"),
        # A model row cannot go while anything of it runs.
        CheckConstraint("NOT is_live OR model_id IS NOT NULL", name="live_has_a_model"),
        # The target of the reservations' key: a reservation names a live instance on this host and epoch.
        UniqueConstraint("instance_id", "host_id", "epoch", "is_live"),
        Index("ix_instances_live_model_id", "model_id", postgresql_where=text("is_live")),
        Index("ix_instances_live_host_id", "host_id", postgresql_where=text("is_live")),
        Index("ix_instances_model_created_at", "model", "created_at"),
        Index("ix_instances_created_at", "created_at", "epoch"),
    )

    instance_id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[int | None] = mapped_column(
        ForeignKey("models.model_id", ondelete="SET NULL"), index=True
    )
    # The name as it was, for history.
    model: Mapped[str]
    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.host_id"))
    state: Mapped[str]
    is_live: Mapped[bool] = mapped_column(Computed(_IS_LIVE, persisted=True))
    epoch: Mapped[int]
    decision_id: Mapped[str]
    checkpoint_id: Mapped[str]
    gpu_count: Mapped[int]
    max_concurrency: Mapped[int]
    keep_alive_s: Mapped[float]
    endpoint: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # When the present plan was made; later than created_at after a replan.
    planned_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ready_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None]
    failure_code: Mapped[str | None]
    failure: Mapped[str | None]


class ReservationRow(Base):
    """A GPU held by a live instance. The primary key is the promise that no GPU is held twice."""

    __tablename__ = "reservations"
    __table_args__ = (
        CheckConstraint("instance_is_live", name="instance_is_live"),
        ForeignKeyConstraint(["host_id", "gpu_index"], ["gpus.host_id", "gpus.gpu_index"]),
        # An instance that ends, moves or takes another epoch cannot keep these rows: the key would break.
        ForeignKeyConstraint(
            ["instance_id", "host_id", "epoch", "instance_is_live"],
            ["instances.instance_id", "instances.host_id", "instances.epoch", "instances.is_live"],
        ),
        Index("ix_reservations_instance_id", "instance_id"),
    )

    host_id: Mapped[str] = mapped_column(primary_key=True)
    gpu_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    instance_id: Mapped[str]
    epoch: Mapped[int]
    instance_is_live: Mapped[bool] = mapped_column(server_default=text("true"))
    reserved_at: Mapped[datetime] = mapped_column(server_default=func.now())


class PromiseRow(Base):
    """A GPU that a start will hold as soon as the instance before it gives it back.

    The trigger `hand_gpu_on` makes it that start's reservation in the very transaction that releases it, so
    that nobody else can take it between. A promise of a start that has ended cannot exist.
    """

    __tablename__ = "promises"
    __table_args__ = (
        CheckConstraint("instance_is_live", name="instance_is_live"),
        ForeignKeyConstraint(["host_id", "gpu_index"], ["gpus.host_id", "gpus.gpu_index"]),
        ForeignKeyConstraint(
            ["instance_id", "host_id", "epoch", "instance_is_live"],
            ["instances.instance_id", "instances.host_id", "instances.epoch", "instances.is_live"],
        ),
        Index("ix_promises_instance_id", "instance_id"),
    )

    host_id: Mapped[str] = mapped_column(primary_key=True)
    gpu_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    instance_id: Mapped[str]
    epoch: Mapped[int]
    instance_is_live: Mapped[bool] = mapped_column(server_default=text("true"))
    promised_at: Mapped[datetime] = mapped_column(server_default=func.now())


class EngineLoadRow(Base):
    """What an engine had to do when its host's agent last asked it; it changes often, so it stands apart."""

    __tablename__ = "engine_loads"
    __table_args__ = (CheckConstraint("least(requests, tokens) >= 0", name="figures_not_negative"),)

    instance_id: Mapped[str] = mapped_column(
        ForeignKey("instances.instance_id", ondelete="CASCADE"), primary_key=True
    )
    # Running, waiting or on their way there; and the tokens (prompt and generated) of those that run.
    requests: Mapped[int]
    tokens: Mapped[int]
    # Null while it is busy.
    idle_since: Mapped[datetime | None]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
