"""Keeps what the API knows in step with Postgres: one listener, and a full refresh after every reconnect."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

from api.catalog import Catalog
from api.routing.notices import InstanceNotice, parse_notice
from api.routing.route_table import LIVE, RouteTable
from api.starts import StartDirector
from firstlight.database.connection import (
    FLEET_CHANNEL,
    INSTANCE_CHANNEL,
    MODEL_CHANNEL,
    Database,
    Notification,
)
from firstlight.database.instances_repository import InstanceRecord, list_instances
from firstlight.database.progress_news import PROGRESS_CHANNEL
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)

REFRESH_AGAIN_S = 0.5


class Feed:
    """`is_fresh` is set once everything was read after the last connect."""

    def __init__(
        self,
        *,
        database: Database,
        table: RouteTable,
        catalog: Catalog,
        director: StartDirector,
        on_change: Callable[[], None] = lambda: None,
        on_news: Callable[[], None] = lambda: None,
        on_progress: Callable[[str], None] = lambda payload: None,
    ) -> None:
        """`on_change`: a model, or everything, was read anew. `on_news`: whatever was notified.

        `on_progress`: word of a start or a move under way; nothing in Postgres has changed by it.
        """
        self._database = database
        self._table = table
        self._catalog = catalog
        self._director = director
        self._on_change = on_change
        self._on_news = on_news
        self._on_progress = on_progress
        self.is_fresh = asyncio.Event()

    async def run(self) -> None:
        """Listen for ever."""
        channels = (INSTANCE_CHANNEL, MODEL_CHANNEL, FLEET_CHANNEL, PROGRESS_CHANNEL)
        async for item in self._database.listen(*channels):
            if isinstance(item, Notification):
                await self._take(item)
            else:
                await self._refresh_until_done()

    async def _take(self, notification: Notification) -> None:
        if notification.channel != PROGRESS_CHANNEL:
            self._on_news()
        if notification.channel == FLEET_CHANNEL:
            return
        try:
            if notification.channel == PROGRESS_CHANNEL:
                self._on_progress(notification.payload)
                return
            if notification.channel == INSTANCE_CHANNEL:
                notice = parse_notice(notification.payload)
                self._table.apply(notice)
                return
            name = json.loads(notification.payload)["name"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A newer release may notify in another way; the next refresh has the same news.
            logger.warning("notification on %s is not understood: %r", notification.channel, error)
            return
        await self._reload(name)

    async def _reload(self, name: str) -> None:
        try:
            await self._catalog.reload(name)
        except FirstlightError as error:
            logger.warning("model %s could not be read anew: %s", name, error.message)
        self._director.wake_all()
        self._on_change()

    async def _refresh_until_done(self) -> None:
        # Notifications queue behind this on their connection, so nothing can overtake the refresh.
        self.is_fresh.clear()
        while True:
            try:
                await self._catalog.refresh()
                async with self._database.session() as session:
                    records = await list_instances(session, states=LIVE)
                break
            except FirstlightError as error:
                logger.warning("routes could not be read: %s", error.message)
                await asyncio.sleep(REFRESH_AGAIN_S)
        self._table.refresh([notice_of(record) for record in records])
        self.is_fresh.set()
        self._director.wake_all()
        self._on_change()
        self._on_news()


def notice_of(record: InstanceRecord) -> InstanceNotice:
    return InstanceNotice(
        instance_id=record.instance_id,
        model=record.model,
        host_id=record.host_id,
        state=record.state,
        endpoint=record.endpoint,
        epoch=record.epoch,
        max_concurrency=record.max_concurrency,
        failure_code=record.failure_code,
        failure=record.failure,
    )
