"""What moving requests took and takes, and how fast a host's memory reaches its GPUs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_CAPACITIES = "dram_capacity_bytes >= 0 AND ssd_capacity_bytes >= 0 AND ssd_read_bytes_per_s >= 0"
_CHECK = "ck_hosts_capacities_not_negative"


def upgrade() -> None:
    op.create_table(
        "move_observations",
        sa.Column("migration_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("host_class", sa.Text(), nullable=False),
        sa.Column("transfer", sa.Text(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.Column("predicted_s", sa.Float(precision=53), nullable=False),
        sa.Column(
            "recorded_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "least(tokens, seconds, predicted_s) >= 0",
            name=op.f("ck_move_observations_figures_not_negative"),
        ),
        sa.ForeignKeyConstraint(
            ["migration_id"],
            ["migrations.migration_id"],
            name=op.f("fk_move_observations_migration_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("migration_id", name=op.f("pk_move_observations")),
    )
    op.create_index(
        "ix_move_observations_model_host_class_recorded_at",
        "move_observations",
        ["model", "host_class", "recorded_at"],
        unique=False,
    )
    op.create_table(
        "move_models",
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("host_class", sa.Text(), nullable=False),
        sa.Column("seconds_per_token", sa.Float(precision=53), nullable=False),
        sa.Column("overhead_s", sa.Float(precision=53), nullable=False),
        sa.Column("observations", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "least(seconds_per_token, overhead_s, observations) >= 0",
            name=op.f("ck_move_models_figures_not_negative"),
        ),
        sa.PrimaryKeyConstraint("model", "host_class", name=op.f("pk_move_models")),
    )
    op.add_column(
        "hosts",
        sa.Column("dram_to_gpu_bytes_per_s", sa.Float(precision=53), server_default="0", nullable=False),
    )
    op.drop_constraint(op.f(_CHECK), "hosts", type_="check")
    op.create_check_constraint(op.f(_CHECK), "hosts", f"{_CAPACITIES} AND dram_to_gpu_bytes_per_s >= 0")


def downgrade() -> None:
    op.drop_constraint(op.f(_CHECK), "hosts", type_="check")
    op.create_check_constraint(op.f(_CHECK), "hosts", _CAPACITIES)
    op.drop_column("hosts", "dram_to_gpu_bytes_per_s")
    op.drop_table("move_models")
    op.drop_index("ix_move_observations_model_host_class_recorded_at", table_name="move_observations")
    op.drop_table("move_observations")
