"""What one revision changes of tables and columns, as code of the release before would notice it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
  a.atthasdef OR a.attidentity <> ''
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'alembic_version'
  AND a.attnum > 0 AND NOT a.attisdropped
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`type_name` with its length, where it has one."""

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
            type_name=type_name, may_be_null=bool(may_be_null), has_default=bool(has_default)
        )
        for table, name, type_name, may_be_null, has_default in rows
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
