"""evict_instance: an idle instance ends because somebody needs its GPU; one that is busy again stays.

A start waits for that GPU, so nothing here waits for the instance's own workflow: that is told first, what it
would do is done, and it finds it done. Where the host does not answer, the workflow sees to it as to any end.
"""

from __future__ import annotations

import logging

from temporalio.client import Client

from firstlight.contracts.freeing import EvictInput
from firstlight.contracts.instances import BeginDrainInput, FinishInput, StopSignal
from firstlight.contracts.migrations import MovingInstance
from firstlight.contracts.starting import stop_instance
from firstlight.database.connection import Database
from firstlight.database.hosts_repository import host_address
from firstlight.database.instances_repository import begin_drain, finish_instance, serve_again
from firstlight.domain.errors import Conflict, FirstlightError, StaleEpoch
from firstlight.domain.lifecycle import InstanceState
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient
from firstlight.rpc.idle_engines import IdleEngines

log = logging.getLogger("evict")

# An idle engine ends in a moment; one that got a request all the same drains under its workflow's eyes.
ENDS_WITHIN_S = 5.0
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
    # First: an engine that ends unannounced is a failure to whoever watches it.
    await stop_instance(client, model=request.model, instance_id=request.instance_id, request=stop)
    await _end_now(database, channels, request)


async def _end_now(database: Database, channels: Channels, request: EvictInput) -> None:
    async with database.session() as session:
        address = await host_address(session, request.host_id)
    if address is None:
        return
    try:
        await HostClient(channels, address).stop(
            instance_id=request.instance_id,
            epoch=request.epoch,
            drain_timeout_s=request.drain_timeout_s,
            reason=request.reason,
            timeout_s=ENDS_WITHIN_S,
        )
    except FirstlightError as failure:
        log.info("instance=%s is left to its workflow: %s", request.instance_id, failure.message)
        return
    order = FinishInput(request.instance_id, request.epoch, InstanceState.STOPPED, request.reason)
    async with database.transaction() as session:
        await finish_instance(session, order)


async def _is_idle(channels: Channels, request: EvictInput) -> bool:
    instance = MovingInstance(request.instance_id, request.epoch, request.host_id, request.endpoint)
    return await IdleEngines(channels).find([instance]) is not None
