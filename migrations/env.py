"""Alembic's entry point: migrates on the connection that `firstlight.database.schema` hands over."""

from __future__ import annotations

from alembic import context

from firstlight.database.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=True)
with context.begin_transaction():
    context.run_migrations()
