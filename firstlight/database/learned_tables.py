"""`move_observations` and `move_models`: what moving requests took, and what is foretold from it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base


class MoveObservationRow(Base):
    """One migration that ended well: its requests' tokens together, and the seconds that moving them took."""

    __tablename__ = "move_observations"
    __table_args__ = (
        CheckConstraint("least(tokens, seconds, predicted_s) >= 0", name="figures_not_negative"),
        Index("ix_move_observations_model_host_class_recorded_at", "model", "host_class", "recorded_at"),
    )

    migration_id: Mapped[str] = mapped_column(
        ForeignKey("migrations.migration_id", ondelete="CASCADE"), primary_key=True
    )
    model: Mapped[str]
    # The destination's.
    host_class: Mapped[str]
    transfer: Mapped[str]
    tokens: Mapped[int]
    seconds: Mapped[float]
    # By all moves before this one.
    predicted_s: Mapped[float]
    recorded_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class MoveModelRow(Base):
    """What is foretold of the next move: `seconds_per_token · tokens + overhead_s`."""

    __tablename__ = "move_models"
    __table_args__ = (
        CheckConstraint(
            "least(seconds_per_token, overhead_s, observations) >= 0", name="figures_not_negative"
        ),
    )

    model: Mapped[str] = mapped_column(primary_key=True)
    host_class: Mapped[str] = mapped_column(primary_key=True)
    seconds_per_token: Mapped[float]
    overhead_s: Mapped[float]
    observations: Mapped[int]
