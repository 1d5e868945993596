"""evict_instance: an idle instance ends because somebody needs its GPU; one that is busy again stays."""

from __future__ import annotations

from temporalio.client import Client

from firstlight.contracts.freeing import EvictInput
from firstlight.contracts.instances import BeginDrainInput, StopSignal
from firstlight.contracts.migrations import MovingInstance
from firstlight.contracts.starting import stop_instance
from firstlight.database.connection import Database
from firstlight.database.instances_repository import begin_drain, serve_again
from firstlight.domain.errors import Conflict, StaleEpoch
from firstlight.domain.lifecycle import InstanceState
from firstlight.rpc.channels import Channels
from firstlight.rpc.idle_engines import IdleEngines

ENDED = (InstanceState.STOPPED, InstanceState.FAILED)


async def evict(database: Database, client: Client, channels: Channels, request: EvictInput) -> None:
    """Take its route, look once more whether it is idle, and have its own workflow end it. Idempotent.

    Raises: Conflict when its model's minimum needs it, or it has something to do: it serves on.
    """
    order = BeginDrainInput(request.instance_id, request.epoch, request.reason, respect_minimum=True)
    try:
        async with database.transaction() as session:
            receipt = await begin_drain(session, order)
    except StaleEpoch:
        # That instance is gone; what runs under its name holds other GPUs.
        return
    if receipt.state in ENDED:
        return
    if not receipt.draining:
        raise Conflict(f"instance {request.instance_id} is needed: {receipt.state}")
    if not await _is_idle(channels, request):
        async with database.transaction() as session:
            is_ours = await serve_again(
                session, instance_id=request.instance_id, epoch=request.epoch, reason=request.reason
            )
        if is_ours:
            raise Conflict(f"instance {request.instance_id} has something to do again")
    stop = StopSignal(reason=request.reason, drain_timeout_s=request.drain_timeout_s)
    await stop_instance(client, model=request.model, instance_id=request.instance_id, request=stop)


async def _is_idle(channels: Channels, request: EvictInput) -> bool:
    instance = MovingInstance(request.instance_id, request.epoch, request.host_id, request.endpoint)
    return await IdleEngines(channels).find([instance]) is not None
