"""Deleting a model: out of service at once, its instances told to end, its rows gone when none is left.

Every step may be repeated, by any replica: the database alone knows how far it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from temporalio.service import RPCError

from firstlight.contracts.instances import StopSignal
from firstlight.contracts.starting import cancel_start, stop_instance
from firstlight.database.models_repository import begin_delete, finish_delete
from firstlight.domain.errors import FirstlightError, Overloaded, UnknownModel
from firstlight.domain.lifecycle import InstanceState, ModelState

if TYPE_CHECKING:
    from temporalio.client import Client

    from api.background import Background
    from api.catalog import Catalog
    from api.routing.notices import InstanceNotice
    from firstlight.database.connection import Database
    from firstlight.database.records import InstanceRecord

logger = logging.getLogger(__name__)

DRAIN_S = 30.0


class Deletions:
    def __init__(
        self, *, database: Database, temporal: Client, catalog: Catalog, background: Background
    ) -> None:
        self._database = database
        self._temporal = temporal
        self._catalog = catalog
        self._background = background

    async def delete(self, name: str) -> int:
        """Begin, or go on with, a deletion. Returns how many instances still live; 0: the model is gone.

        Raises: UnknownModel, DatabaseUnavailable; Overloaded when Temporal cannot be told, to be repeated.
        """
        async with self._database.transaction() as session:
            instances = await begin_delete(session, name)
        await self._catalog.reload(name)
        for instance in instances:
            await self._stop(instance)
        if await self._finish(name):
            return 0
        return len(instances)

    def changed(self, notice: InstanceNotice, before: InstanceState | None) -> None:
        """An instance ended: perhaps it was the last of a model being deleted."""
        if notice.state not in (InstanceState.STOPPED, InstanceState.FAILED):
            return
        record = self._catalog.known(notice.model)
        if record is not None and record.state is ModelState.DELETING:
            self._background.start(self._finish_quietly(notice.model), name=f"deletion of {notice.model}")

    async def resume(self) -> None:
        """Go on with deletions that another process began and did not finish."""
        for record in self._catalog.all_records:
            if record.state is ModelState.DELETING:
                try:
                    await self.delete(record.name)
                except FirstlightError as error:
                    logger.warning("deletion of %s waits: %s", record.name, error.message)

    async def _stop(self, instance: InstanceRecord) -> None:
        request = StopSignal(reason="the model was deleted", drain_timeout_s=DRAIN_S)
        try:
            if instance.state is InstanceState.STARTING:
                await cancel_start(self._temporal, model=instance.model, instance_id=instance.instance_id)
            else:
                await stop_instance(
                    self._temporal, model=instance.model, instance_id=instance.instance_id, request=request
                )
        except (RPCError, OSError, RuntimeError) as error:
            raise Overloaded(
                f"Temporal does not answer, so instance {instance.instance_id} could not be told to stop; "
                "repeat the request",
                retry_after_s=5.0,
            ) from error

    async def _finish_quietly(self, name: str) -> None:
        await self._finish(name)

    async def _finish(self, name: str) -> bool:
        try:
            async with self._database.transaction() as session:
                is_gone = await finish_delete(session, name)
        except UnknownModel:
            is_gone = True
        if is_gone:
            await self._catalog.reload(name)
        return is_gone
