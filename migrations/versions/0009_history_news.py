"""Word of migrations, and of what starts took, as they are written: consoles show them at once."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = ("migrations", "startup_observations")


def upgrade() -> None:
    for table in TABLES:
        op.execute(
            f"""CREATE TRIGGER notify_fleet AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()"""
        )


def downgrade() -> None:
    for table in TABLES:
        op.execute(f"DROP TRIGGER notify_fleet ON {table}")
