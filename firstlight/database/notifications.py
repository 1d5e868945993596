"""Postgres notifications as one endless iterator that mends its own connection.

What was notified while there was no connection is gone for good. So every connect yields `Reconnected`, after
LISTEN is in force: whoever reads everything anew at that point misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import make_url

_LOG = logging.getLogger(__name__)
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
# A server that vanished without a word is noticed after about half a minute.
_CONNECT = {
    "connect_timeout": "5",
    "application_name": "firstlight-listen",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
}


@dataclass(frozen=True, slots=True)
class Notification:
    channel: str
    payload: str


@dataclass(frozen=True, slots=True)
class Reconnected:
    """A connection now listens; anything may have happened before."""


async def listen(url: str, *channels: str) -> AsyncIterator[Notification | Reconnected]:
    """Listen on `channels` of the database at the SQLAlchemy `url`, for ever. Ends only by cancellation."""
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    conninfo = make_conninfo(address, **_CONNECT)
    backoff_s = FIRST_BACKOFF_S
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
                for channel in channels:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                backoff_s = FIRST_BACKOFF_S
                yield Reconnected()
                async for notification in connection.notifies():
                    yield Notification(notification.channel, notification.payload)
        except psycopg.Error as error:
            _LOG.warning("listening to the database was interrupted: %s", str(error).strip())
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
