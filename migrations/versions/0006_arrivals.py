"""How each model is asked for is remembered."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "arrivals",
        sa.Column("model_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "counts",
            postgresql.ARRAY(postgresql.BIGINT()),
            server_default=sa.text("array_fill(0::bigint, ARRAY[57])"),
            nullable=False,
        ),
        sa.Column("beyond", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "long_gaps_s",
            postgresql.ARRAY(postgresql.DOUBLE_PRECISION()),
            server_default=sa.text("'{}'::double precision[]"),
            nullable=False,
        ),
        sa.Column("active_until_unix_s", sa.Float(precision=53), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "cardinality(counts) = 57 AND 0 <= ALL (counts)", name=op.f("ck_arrivals_counts_are_whole")
        ),
        sa.CheckConstraint(
            "beyond >= 0 AND cardinality(long_gaps_s) <= 8", name=op.f("ck_arrivals_long_gaps_are_few")
        ),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.model_id"], name=op.f("fk_arrivals_model_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_arrivals")),
    )


def downgrade() -> None:
    op.drop_table("arrivals")
