"""`arrivals`: how each model is asked for, one small row a model, so that it survives restarts."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, func, text
from sqlalchemy.dialects.postgresql import ARRAY, BIGINT, DOUBLE_PRECISION
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base
from firstlight.domain.autoscaling.arrivals import BINS, LONG_GAPS_KEPT


class ArrivalRow(Base):
    """A histogram of the gaps between spells of activity; see firstlight.domain.autoscaling.arrivals."""

    __tablename__ = "arrivals"
    __table_args__ = (
        CheckConstraint(f"cardinality(counts) = {BINS} AND 0 <= ALL (counts)", name="counts_are_whole"),
        CheckConstraint(
            f"beyond >= 0 AND cardinality(long_gaps_s) <= {LONG_GAPS_KEPT}", name="long_gaps_are_few"
        ),
    )

    model_id: Mapped[int] = mapped_column(
        ForeignKey("models.model_id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    counts: Mapped[list[int]] = mapped_column(
        ARRAY(BIGINT), server_default=text(f"array_fill(0::bigint, ARRAY[{BINS}])")
    )
    beyond: Mapped[int] = mapped_column(server_default=text("0"))
    long_gaps_s: Mapped[list[float]] = mapped_column(
        ARRAY(DOUBLE_PRECISION), server_default=text("'{}'::double precision[]")
    )
    # Seconds since the Unix epoch, on the clock of the API that saw it.
    active_until_unix_s: Mapped[float | None]
    # How much longer a quiet that has entered each bin will last; worked out when written, not on every read.
    expected_idle_s: Mapped[list[float | None]] = mapped_column(
        ARRAY(DOUBLE_PRECISION), server_default=text("'{}'::double precision[]")
    )
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
