"""How much longer a model that is quiet will be so is read by every decision, and worked out beforehand."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "arrivals",
        sa.Column(
            "expected_idle_s",
            postgresql.ARRAY(postgresql.DOUBLE_PRECISION()),
            server_default=sa.text("'{}'::double precision[]"),
            nullable=False,
        ),
    )


def downgrade() -> None:
    op.drop_column("arrivals", "expected_idle_s")
