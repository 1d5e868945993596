"""Sessions and transactions on one Postgres database; every failure leaves here as one of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from firstlight.database.failures import translated
from firstlight.database.notifications import Notification, Reconnected, listen
from firstlight.database.triggers import FLEET_CHANNEL, INSTANCE_CHANNEL, MODEL_CHANNEL

__all__ = ["FLEET_CHANNEL", "INSTANCE_CHANNEL", "MODEL_CHANNEL", "Database", "Notification", "Reconnected"]

CONNECT_TIMEOUT_S = 5
# No transaction of ours takes a tenth of this. Whoever hangs in one holds locks that others wait for.
_SESSION_OPTIONS = "-c lock_timeout=10s -c statement_timeout=30s -c idle_in_transaction_session_timeout=30s"
POOL_TIMEOUT_S = 5.0
# Uses of a statement before the server keeps its plan.
PREPARED_AFTER = 1


class Database:
    """A connection pool. Close it with `close()`; one per process and event loop."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        self._url = url
        self._pool_size = pool_size
        self._engine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=POOL_TIMEOUT_S,
            # A pooled connection may have died with the server; asking first costs a tenth of a millisecond.
            pool_pre_ping=True,
            # The same few connections again and again: theirs are the statements that are prepared already.
            pool_use_lifo=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                # Prepare at the second use: a cold start must not be the one that pays for planning.
                "prepare_threshold": PREPARED_AFTER,
                "application_name": "firstlight",
                "options": _options(url),
            },
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session to read with; the caller commits, if at all. Raises: DatabaseUnavailable."""
        with translated():
            async with self._sessions() as session:
                yield session

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """Commit at the end, roll back on any error; never retried here. Raises: DatabaseUnavailable."""
        with translated():
            async with self._sessions.begin() as session:
                yield session

    async def warm(self, work: Callable[[AsyncSession], Awaitable[None]]) -> None:
        """Open the pool's connections ahead and do `work` on each often enough to be prepared there.

        What it writes is rolled back. Raises: DatabaseUnavailable.
        """
        async with AsyncExitStack() as stack:
            sessions = [await stack.enter_async_context(self.session()) for _ in range(self._pool_size)]
            for session in sessions:
                for _ in range(PREPARED_AFTER + 1):
                    await work(session)
                    await session.rollback()

    async def ping(self) -> None:
        """Raises: DatabaseUnavailable."""
        async with self.session() as session:
            await session.execute(text("SELECT 1"))

    def listen(self, *channels: str) -> AsyncIterator[Notification | Reconnected]:
        """Notifications for ever, on a connection of its own that comes back by itself.

        `Reconnected` follows every connect, the first included: what happened before it must be read anew.
        """
        return listen(self._url, *channels)

    async def close(self) -> None:
        await self._engine.dispose()


def _options(url: str) -> str:
    """Ours, and behind them, so that they win, those of the URL."""
    given = make_url(url).query.get("options", "")
    return " ".join([_SESSION_OPTIONS, *([given] if isinstance(given, str) else given)]).strip()
