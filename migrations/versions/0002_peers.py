"""Stores that give checkpoints to each other, and word of every change of the fleet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# A copy of firstlight.database.triggers as it was; op.execute takes each as it stands.
TRIGGERS = (
    """CREATE FUNCTION notify_fleet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('firstlight_fleet', TG_TABLE_NAME);
  RETURN NULL;
END $$""",
    """CREATE TRIGGER notify_fleet AFTER INSERT OR DELETE ON hosts FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()""",
    """CREATE TRIGGER notify_fleet_update AFTER UPDATE ON hosts FOR EACH ROW
  WHEN ((OLD.state, OLD.registration, OLD.edges, OLD.peer_endpoint)
    IS DISTINCT FROM (NEW.state, NEW.registration, NEW.edges, NEW.peer_endpoint))
  EXECUTE FUNCTION notify_fleet()""",
    """CREATE TRIGGER notify_fleet AFTER INSERT OR UPDATE OR DELETE ON placements FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()""",
)
TIER = "ck_startup_observations_tier_is_known"


def upgrade() -> None:
    op.add_column("hosts", sa.Column("peer_endpoint", sa.Text(), server_default="", nullable=False))
    op.drop_constraint(op.f(TIER), "startup_observations", type_="check")
    op.create_check_constraint(
        op.f(TIER), "startup_observations", "tier IN ('remote', 'peer', 'ssd', 'dram')"
    )
    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP FUNCTION notify_fleet() CASCADE")
    op.execute("UPDATE startup_observations SET tier = 'remote' WHERE tier = 'peer'")
    op.drop_constraint(op.f(TIER), "startup_observations", type_="check")
    op.create_check_constraint(op.f(TIER), "startup_observations", "tier IN ('remote', 'ssd', 'dram')")
    op.drop_column("hosts", "peer_endpoint")
