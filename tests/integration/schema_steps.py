"""What one revision changes, as code of the release before would notice it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

_COLUMNS = """
SELECT table_name, column_name, data_type, udt_name, is_nullable = 'YES', column_default IS NOT NULL
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'alembic_version'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    type_name: str
    may_be_null: bool
    has_default: bool


Schema = dict[tuple[str, str], Column]


def read_schema(url: str) -> Schema:
    """Every column by table and name."""
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            rows = connection.execute(text(_COLUMNS)).all()
    finally:
        engine.dispose()
    return {
        (table, name): Column(
            type_name=f"{kind}/{own}", may_be_null=bool(may_be_null), has_default=bool(has_default)
        )
        for table, name, kind, own, may_be_null, has_default in rows
    }


def breaches(before: Schema, after: Schema) -> list[str]:
    """One sentence for each change that code which knows only `before` would stumble over."""
    found = []
    tables = {table for table, _ in before}
    for (table, name), old in before.items():
        new = after.get((table, name))
        if new is None:
            found.append(f"{table}.{name} has gone: code that runs still reads it")
        elif new.type_name != old.type_name:
            found.append(f"{table}.{name} is of another type")
        elif old.may_be_null and not new.may_be_null:
            found.append(f"{table}.{name} may not be null any more: code that runs leaves it so")
        elif old.has_default and not new.has_default and not new.may_be_null:
            found.append(f"{table}.{name} has lost its default: code that runs relies on it")
    for (table, name), new in after.items():
        if table in tables and (table, name) not in before and not (new.may_be_null or new.has_default):
            found.append(f"{table}.{name} is new and must be given: code that runs does not know it")
    return found
