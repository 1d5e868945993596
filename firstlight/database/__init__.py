"""The state of record: SQLAlchemy tables, sessions and repositories over one Postgres database.

Every state machine of `firstlight.domain.lifecycle` is repeated here as constraints and triggers. A decision
is one transaction; nothing outside this room writes SQL.
"""
