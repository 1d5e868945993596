"""Changing a model's settings, and telling the instances that run already."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from temporalio.service import RPCError

from firstlight.contracts.starting import change_keep_alive
from firstlight.database.instances_repository import list_instances
from firstlight.database.models_repository import scale_model
from firstlight.domain.errors import Overloaded
from firstlight.domain.lifecycle import InstanceState

if TYPE_CHECKING:
    from api.admin.fields import ScaleRequest
    from api.services import Services
    from firstlight.database.records import ModelRecord

logger = logging.getLogger(__name__)


async def scale(services: Services, name: str, wish: ScaleRequest) -> ModelRecord:
    """Change what is given. A new keep-alive counts for running instances too, from now on.

    Raises: UnknownModel, ModelBeingDeleted, InvalidSettings; Overloaded when the settings are kept but a
    running instance could not be told, to be repeated.
    """
    async with services.database.transaction() as session:
        record = await scale_model(session, name, **wish.model_dump(exclude_none=True))
    await services.catalog.reload(name)
    if wish.keep_alive_s is not None:
        await _tell(services, name, wish.keep_alive_s)
    return record


async def _tell(services: Services, name: str, keep_alive_s: float) -> None:
    async with services.database.session() as session:
        ready = await list_instances(session, states=[InstanceState.READY], model=name)
    try:
        for instance in ready:
            await change_keep_alive(
                services.temporal, instance_id=instance.instance_id, keep_alive_s=keep_alive_s
            )
    except (RPCError, OSError, RuntimeError) as error:
        raise Overloaded(
            "the settings are changed, but Temporal does not answer, so running instances keep their old "
            "keep-alive time; repeat the request",
            retry_after_s=5.0,
        ) from error
