"""What was asked for with each key: added up by hour and model, in one statement for many requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.tables import KeyUsageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageKey:
    """`hour_unix_s` is the hour's begin."""

    key_id: str
    hour_unix_s: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            requests=self.requests + other.requests,
            refused=self.refused + other.refused,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    key_id: str
    model: str
    requests: int
    refused: int
    prompt_tokens: int
    completion_tokens: int


async def add_usage(session: AsyncSession, rows: Mapping[UsageKey, Usage]) -> None:
    """Add to what is kept. In the order of the keys: two writers with the same rows must not cross."""
    if not rows:
        return
    ordered = sorted(rows.items(), key=lambda row: (row[0].key_id, row[0].hour_unix_s, row[0].model))
    statement = insert(KeyUsageRow).values(
        [
            {
                "key_id": key.key_id,
                "hour": datetime.fromtimestamp(key.hour_unix_s, UTC),
                "model": key.model,
                "requests": usage.requests,
                "refused": usage.refused,
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": usage.completion_tokens,
            }
            for key, usage in ordered
        ]
    )
    added = {
        name: getattr(KeyUsageRow, name) + statement.excluded[name]
        for name in ("requests", "refused", "prompt_tokens", "completion_tokens")
    }
    await session.execute(
        statement.on_conflict_do_update(index_elements=["key_id", "hour", "model"], set_=added)
    )


async def list_usage(
    session: AsyncSession, *, since_unix_s: float, key_id: str | None = None
) -> list[UsageRecord]:
    """Sums by key and model since the begin of that hour, those with most tokens first."""
    tokens = func.sum(KeyUsageRow.prompt_tokens) + func.sum(KeyUsageRow.completion_tokens)
    query = (
        select(
            KeyUsageRow.key_id,
            KeyUsageRow.model,
            func.sum(KeyUsageRow.requests),
            func.sum(KeyUsageRow.refused),
            func.sum(KeyUsageRow.prompt_tokens),
            func.sum(KeyUsageRow.completion_tokens),
        )
        .where(KeyUsageRow.hour >= datetime.fromtimestamp(since_unix_s - since_unix_s % 3600, UTC))
        .group_by(KeyUsageRow.key_id, KeyUsageRow.model)
        .order_by(tokens.desc(), KeyUsageRow.key_id, KeyUsageRow.model)
    )
    if key_id is not None:
        query = query.where(KeyUsageRow.key_id == key_id)
    return [
        UsageRecord(
            key_id=row[0],
            model=row[1],
            requests=int(row[2]),
            refused=int(row[3]),
            prompt_tokens=int(row[4]),
            completion_tokens=int(row[5]),
        )
        for row in await session.execute(query)
    ]
