"""The declarative base: one naming convention, so that every constraint has a name a migration can drop."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, DateTime, Float, MetaData, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

# Any: JSON documents (candidates, edges, audit details); their shape is the repositories' business.
JsonDocument = dict[str, object]
JsonRows = list[dict[str, object]]
JsonPairs = list[list[float]]


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  the attribute SQLAlchemy reads
        str: Text(),
        # Byte counts and epochs pass 2^31.
        int: BigInteger(),
        float: Float(53),
        datetime: DateTime(timezone=True),
        JsonDocument: JSONB(),
        JsonRows: JSONB(),
        JsonPairs: JSONB(),
    }


def one_of(column: str, states: Iterable[StrEnum | str]) -> str:
    """SQL of a check that `column` holds one of the states."""
    return f"{column} IN ({', '.join(repr(str(state)) for state in states)})"
