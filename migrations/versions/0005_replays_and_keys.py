"""Failed starts and migrations can be resumed; keys have limits and a record of their use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# A copy of firstlight.database.triggers as it was.
_STEPS = (
    "'draining failed'",
    "'draining ready'",
    "'draining stopped'",
    "'failed starting'",
    "'ready draining'",
    "'ready failed'",
    "'ready starting'",
    "'ready stopped'",
    "'starting failed'",
    "'starting ready'",
    "'starting stopped'",
)


def _step_check(steps: tuple[str, ...]) -> str:
    listed = ",\n    ".join(steps)
    return f"""CREATE OR REPLACE FUNCTION check_instances_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state || ' ' || NEW.state) = ANY (ARRAY[
    {listed}
  ]) THEN
    RAISE EXCEPTION 'instances: no step from % to %', OLD.state, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_instances_step';
  END IF;
  RETURN NEW;
END $$"""


def upgrade() -> None:
    op.execute(_step_check(_STEPS))
    op.add_column("migrations", sa.Column("attempt", sa.BigInteger(), server_default="1", nullable=False))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("max_concurrent", sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_api_keys_limits_are_positive"), "api_keys", "least(requests_per_minute, max_concurrent) >= 1"
    )
    op.create_table(
        "key_usage",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "least(requests, refused, prompt_tokens, completion_tokens) >= 0",
            name=op.f("ck_key_usage_figures_not_negative"),
        ),
        sa.PrimaryKeyConstraint("key_id", "hour", "model", name=op.f("pk_key_usage")),
    )
    op.create_index("ix_key_usage_hour", "key_usage", ["hour"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_key_usage_hour", table_name="key_usage")
    op.drop_table("key_usage")
    op.drop_constraint(op.f("ck_api_keys_limits_are_positive"), "api_keys", type_="check")
    op.drop_column("api_keys", "max_concurrent")
    op.drop_column("api_keys", "requests_per_minute")
    op.drop_column("migrations", "attempt")
    op.execute(_step_check(tuple(step for step in _STEPS if step != "'failed starting'")))
