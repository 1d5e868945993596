"""From a model's name to what a request needs before it can be put into tokens."""

from __future__ import annotations

import asyncio
import time

from api.catalog import Catalog
from api.routing.lane import Slot
from api.routing.route_table import RouteTable
from api.text.model_text import ModelText
from api.text_cache import TextCache
from firstlight.database.models_repository import ModelRecord
from firstlight.domain.errors import EngineGone, StartTimeout, UnknownCheckpoint

# A store that has died is back within seconds; one that only restarts soon answers.
_ASKED_AGAIN_AFTER_S, _ASKED_AGAIN_AT_LEAST_EVERY_S = 0.1, 1.0


class Admission:
    def __init__(self, *, catalog: Catalog, table: RouteTable, texts: TextCache) -> None:
        self._catalog = catalog
        self._table = table
        self._texts = texts

    async def find(self, name: str) -> ModelRecord:
        """Raises: UnknownModel, DatabaseUnavailable for a name never seen."""
        return await self._catalog.find(name)

    async def text_of(self, record: ModelRecord, *, deadline_s: float, request_id: str) -> ModelText:
        """The model's text: from memory at once, else fetched while the start is already under way.

        Raises: what waiting in the lane raises; SourceCorrupt.
        """
        if (text := self._texts.loaded(record.checkpoint_id)) is not None:
            return text
        # Standing in line without wanting a place begins the start, and tells when some host has the files.
        lane = self._table.lane(record.name)
        presence = asyncio.create_task(
            lane.take(deadline_s=deadline_s, request_id=request_id, needs_slot=False)
        )
        loading = asyncio.create_task(self._load(record))
        try:
            await asyncio.wait({presence, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and (text := loading.result()) is not None:
                return text
            slot = await presence
            return await loading or await self._load_from(record, slot, deadline_s, request_id)
        finally:
            for task in (presence, loading):
                task.cancel()
            await asyncio.gather(presence, loading, return_exceptions=True)

    async def _load(self, record: ModelRecord) -> ModelText | None:
        # A cached record may be older than the first conversion, and so lack the digest of the disk cache.
        fresh = record if record.manifest_digest else await self._catalog.reload(record.name)
        return await self._texts.load(fresh or record, host_id=None)

    async def _load_from(
        self, record: ModelRecord, slot: Slot, deadline_s: float, request_id: str
    ) -> ModelText:
        """From the host that serves it. One whose store has just died is asked again until the deadline:

        its start goes on, there or elsewhere, and the files are in their place again before it is over.
        """
        lane = self._table.lane(record.name)
        delay_s, was_away = _ASKED_AGAIN_AFTER_S, False
        while True:
            try:
                text = await self._texts.load(record, host_id=slot.route.host_id)
                if text is not None:
                    return text
                if not was_away or time.monotonic() + delay_s > deadline_s:
                    raise UnknownCheckpoint(
                        f"host {slot.route.host_id} serves {record.name!r} and cannot give its tokenizer",
                        model=record.name,
                    )
            except (EngineGone, StartTimeout):
                was_away = True
                if time.monotonic() + delay_s > deadline_s:
                    raise
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _ASKED_AGAIN_AT_LEAST_EVERY_S)
            slot = await lane.take(deadline_s=deadline_s, request_id=request_id, needs_slot=False)
