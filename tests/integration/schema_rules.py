"""What the database itself enforces and does beside its columns, and how one revision changes that."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.integration.schema_steps import Schema

_RULES = """
SELECT c.relname, k.conname, CASE k.contype WHEN 'c' THEN 'check' WHEN 'f' THEN 'reference' ELSE 'unique' END,
  pg_get_constraintdef(k.oid),
  ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = k.conrelid AND attnum = ANY (k.conkey))
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
WHERE k.connamespace = 'public'::regnamespace AND k.contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT c.relname, i.relname, 'unique', pg_get_indexdef(x.indexrelid), '{}'
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND x.indisunique
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = x.indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL
SELECT c.relname, t.tgname, 'trigger', pg_get_triggerdef(t.oid), '{}'
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE c.relnamespace = 'public'::regnamespace AND NOT t.tgisinternal
UNION ALL
SELECT '', proname, 'function', pg_get_functiondef(oid), '{}'
FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind IN ('f', 'p')
UNION ALL
SELECT '', relname, 'sequence', '', '{}'
FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`kind` is check, reference, unique, trigger, function or sequence; the last two are of no table."""

    kind: str
    definition: str
    columns: frozenset[str] = frozenset()


Rules = dict[tuple[str, str], Rule]


def read_rules(url: str) -> Rules:
    """Every rule by table and name."""
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            rows = connection.execute(text(_RULES)).all()
    finally:
        engine.dispose()
    return {
        (table, name): Rule(kind=kind, definition=definition, columns=frozenset(columns))
        for table, name, kind, definition, columns in rows
        if table != "alembic_version"
    }


def to_review(before: Rules, after: Rules, known: Schema) -> list[str]:
    """Each rule of which only a person can say that code which knows no more than `known` gets along with it.

    A check that goes makes room and is none of them, nor is what concerns new tables and columns alone.
    """
    tables = {table for table, _ in known}
    gone = [
        name for (table, name), old in before.items() if (table, name) not in after and old.kind != "check"
    ]
    changed = [key[1] for key, old in before.items() if key in after and after[key] != old]
    added = [
        name
        for (table, name), new in after.items()
        if (table, name) not in before and table in tables and not _is_of_new_columns(table, new, known)
    ]
    return sorted({*gone, *changed, *added})


def _is_of_new_columns(table: str, rule: Rule, known: Schema) -> bool:
    is_limit = rule.kind in ("check", "reference") and bool(rule.columns)
    return is_limit and not any((table, column) in known for column in rule.columns)
