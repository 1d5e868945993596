"""Word of starts and moves under way, over Postgres to every API process: told, and kept nowhere.

A word is a notification without a row. It takes no lock that a writer of these tables would meet, writes
nothing that a commit would have to wait for, and whoever did not listen hears the next one.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, fields

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.progress import MoveProgress, Progress, StartProgress

PROGRESS_CHANNEL = "firstlight_progress"
KINDS: dict[str, type[StartProgress] | type[MoveProgress]] = {"start": StartProgress, "move": MoveProgress}

# The fence: whose plan was replaced or has ended says no more.
_TELL_START = text(
    "SELECT pg_notify(:channel, :payload) FROM instances "
    "WHERE instance_id = :instance_id AND epoch = :epoch AND is_live"
)
_TELL_MOVE = text(
    "SELECT pg_notify(:channel, :payload) FROM migrations "
    "JOIN instances ON instances.instance_id = migrations.source_instance_id "
    "WHERE migration_id = :migration_id AND migrations.state = 'running' "
    "AND instances.instance_id = :instance_id AND instances.epoch = :epoch"
)


async def tell_progress(session: AsyncSession, words: Collection[Progress]) -> None:
    """Heard when the transaction commits; of a stale epoch nothing is."""
    for word in words:
        values = {"channel": PROGRESS_CHANNEL, "payload": _payload(word)}
        if isinstance(word, StartProgress):
            await session.execute(
                _TELL_START, {**values, "instance_id": word.instance_id, "epoch": word.epoch}
            )
        else:
            await session.execute(
                _TELL_MOVE,
                {
                    **values,
                    "migration_id": word.migration_id,
                    "instance_id": word.source_instance_id,
                    "epoch": word.source_epoch,
                },
            )


def parse_progress(payload: str) -> Progress:
    """The word in a notification.

    Raises: ValueError, KeyError, TypeError or AttributeError for one of another release.
    """
    row = json.loads(payload)
    kind = KINDS[row["kind"]]
    known = {one.name for one in fields(kind)}
    return kind(**{name: value for name, value in row.items() if name in known})


def _payload(word: Progress) -> str:
    kind = next(name for name, made in KINDS.items() if isinstance(word, made))
    return json.dumps({"kind": kind, **asdict(word)}, separators=(",", ":"))
