"""Alembic migrations of the database schema; run them with `firstlight.database.schema.upgrade`."""
