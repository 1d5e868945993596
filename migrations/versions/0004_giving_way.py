"""Starts that others give way to: GPUs promised to them, what engines have to do, and what was decided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Copies of firstlight.database.triggers as they were; op.execute takes each as it stands.
GPUS_HELD_BEFORE = """CREATE OR REPLACE FUNCTION check_gpus_held() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject text := CASE TG_TABLE_NAME WHEN 'instances' THEN NEW.instance_id ELSE OLD.instance_id END;
  needed bigint;
  held bigint;
BEGIN
  SELECT gpu_count INTO needed FROM instances WHERE instance_id = subject AND is_live;
  IF FOUND THEN
    SELECT count(*) INTO held FROM reservations WHERE instance_id = subject;
    IF held <> needed THEN
      RAISE EXCEPTION 'instance % holds % of its % GPUs', subject, held, needed
        USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_reservations_gpus_held';
    END IF;
  END IF;
  RETURN NULL;
END $$"""
GPUS_HELD = """CREATE OR REPLACE FUNCTION check_gpus_held() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject text := CASE TG_TABLE_NAME WHEN 'instances' THEN NEW.instance_id ELSE OLD.instance_id END;
  needed bigint;
  held bigint;
BEGIN
  SELECT gpu_count INTO needed FROM instances WHERE instance_id = subject AND is_live;
  IF FOUND THEN
    SELECT (SELECT count(*) FROM reservations WHERE instance_id = subject)
      + (SELECT count(*) FROM promises WHERE instance_id = subject) INTO held;
    IF held <> needed THEN
      RAISE EXCEPTION 'instance % holds % of its % GPUs', subject, held, needed
        USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_reservations_gpus_held';
    END IF;
  END IF;
  RETURN NULL;
END $$"""
TRIGGERS = (
    """CREATE CONSTRAINT TRIGGER check_gpus_held AFTER DELETE
  ON promises DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_gpus_held()""",
    """CREATE FUNCTION hand_gpu_on() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  heir text;
BEGIN
  SELECT instance_id INTO heir FROM promises WHERE host_id = OLD.host_id AND gpu_index = OLD.gpu_index;
  IF FOUND THEN
    PERFORM 1 FROM instances WHERE instance_id = heir FOR KEY SHARE;
    WITH kept AS (
      DELETE FROM promises WHERE host_id = OLD.host_id AND gpu_index = OLD.gpu_index
      RETURNING host_id, gpu_index, instance_id, epoch
    )
    INSERT INTO reservations (host_id, gpu_index, instance_id, epoch)
      SELECT host_id, gpu_index, instance_id, epoch FROM kept;
  END IF;
  RETURN NULL;
END $$""",
    """CREATE TRIGGER hand_gpu_on AFTER DELETE ON reservations FOR EACH ROW
  EXECUTE FUNCTION hand_gpu_on()""",
)
KIND = "ck_decisions_kind_is_known"
COMPLETE = "ck_decisions_place_is_complete"
_HAS_ALL = "(host_id IS NOT NULL AND instance_id IS NOT NULL AND epoch IS NOT NULL AND estimate IS NOT NULL)"


def upgrade() -> None:
    _create_tables()
    op.add_column(
        "models", sa.Column("priority", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.add_column("models", sa.Column("transfer", sa.Text(), server_default="exact", nullable=False))
    op.create_check_constraint(
        op.f("ck_models_transfer_is_known"), "models", "transfer IN ('exact', 'tokens', 'fast')"
    )
    op.add_column(
        "decisions",
        sa.Column("victims", postgresql.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
    )
    op.drop_constraint(op.f(KIND), "decisions", type_="check")
    op.create_check_constraint(op.f(KIND), "decisions", "kind IN ('place', 'migrate', 'wait', 'reject')")
    op.drop_constraint(op.f(COMPLETE), "decisions", type_="check")
    op.create_check_constraint(op.f(COMPLETE), "decisions", f"kind NOT IN ('place', 'migrate') OR {_HAS_ALL}")
    for column in ("predicted_free_s", "free_s"):
        op.add_column("startup_observations", sa.Column(column, sa.Float(precision=53), nullable=True))
    op.execute(GPUS_HELD)
    for statement in TRIGGERS:
        op.execute(statement)


def _create_tables() -> None:
    op.create_table(
        "promises",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("gpu_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("instance_is_live", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("promised_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("instance_is_live", name=op.f("ck_promises_instance_is_live")),
        sa.ForeignKeyConstraint(
            ["host_id", "gpu_index"],
            ["gpus.host_id", "gpus.gpu_index"],
            name=op.f("fk_promises_host_id_gpu_index"),
        ),
        sa.ForeignKeyConstraint(
            ["instance_id", "host_id", "epoch", "instance_is_live"],
            ["instances.instance_id", "instances.host_id", "instances.epoch", "instances.is_live"],
            name=op.f("fk_promises_instance_id_host_id_epoch_instance_is_live"),
        ),
        sa.PrimaryKeyConstraint("host_id", "gpu_index", name=op.f("pk_promises")),
    )
    op.create_index("ix_promises_instance_id", "promises", ["instance_id"], unique=False)
    op.create_table(
        "engine_loads",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("idle_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("least(requests, tokens) >= 0", name=op.f("ck_engine_loads_figures_not_negative")),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instances.instance_id"],
            name=op.f("fk_engine_loads_instance_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_engine_loads")),
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION hand_gpu_on() CASCADE")
    op.drop_table("engine_loads")
    op.drop_index("ix_promises_instance_id", table_name="promises")
    op.drop_table("promises")
    op.execute(GPUS_HELD_BEFORE)
    for column in ("free_s", "predicted_free_s"):
        op.drop_column("startup_observations", column)
    op.execute("UPDATE decisions SET kind = 'place' WHERE kind = 'migrate'")
    op.drop_constraint(op.f(COMPLETE), "decisions", type_="check")
    op.create_check_constraint(op.f(COMPLETE), "decisions", f"kind <> 'place' OR {_HAS_ALL}")
    op.drop_constraint(op.f(KIND), "decisions", type_="check")
    op.create_check_constraint(op.f(KIND), "decisions", "kind IN ('place', 'wait', 'reject')")
    op.drop_column("decisions", "victims")
    op.drop_constraint(op.f("ck_models_transfer_is_known"), "models", type_="check")
    op.drop_column("models", "transfer")
    op.drop_column("models", "priority")
