"""Replays of workflows that hold no GPUs of their own; each is checked against what its rows say now."""

from __future__ import annotations

from firstlight.contracts.draining import DrainInput
from firstlight.contracts.hosts import HostInput
from firstlight.contracts.instances import InstanceInput
from firstlight.contracts.naming import (
    HOST_DRAIN,
    HOST_LIFECYCLE,
    INSTANCE_LIFECYCLE,
    MODEL_DOWNLOAD,
)
from firstlight.contracts.starts import DownloadInput
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import get_instance
from firstlight.database.models_repository import get_model
from firstlight.database.records import HostRecord
from firstlight.domain.errors import Conflict, StaleEpoch, UnknownHost
from firstlight.domain.lifecycle import HostState, InstanceState
from firstlight.recovery.report import Report
from firstlight.recovery.reset_point import point_of_last_failure, point_of_open_work
from firstlight.recovery.stage import Stage
from firstlight.recovery.temporal_acts import start_again


async def from_failure(stage: Stage) -> Report:
    """Raises: FirstlightError, with nothing changed."""
    await _check_still_meant(stage)
    find = point_of_open_work if stage.was_cut_off else point_of_last_failure
    point = find(stage.recorded)
    sentence = f"go on with {point.next_step} (event {point.event_id})"
    if stage.is_rehearsal:
        return stage.tell(sentence)
    return stage.tell(sentence, new_run_id=await stage.reset(point))


async def from_start(stage: Stage) -> Report:
    """Raises: FirstlightError, with nothing changed."""
    await _check_still_meant(stage)
    sentence = f"run {stage.found.workflow_type} again with the same input"
    if stage.is_rehearsal:
        return stage.tell(sentence)
    run_id = await start_again(stage.client, stage.found, stage.recorded)
    return stage.tell(sentence, new_run_id=run_id)


async def _check_still_meant(stage: Stage) -> None:
    checks = {
        MODEL_DOWNLOAD: _check_download,
        INSTANCE_LIFECYCLE: _check_instance,
        HOST_LIFECYCLE: _check_host,
        HOST_DRAIN: _check_drain,
    }
    if (check := checks.get(stage.found.workflow_type)) is not None:
        await check(stage)


async def _check_download(stage: Stage) -> None:
    request: DownloadInput = await stage.recorded.input(DownloadInput)
    async with stage.database.session() as session:
        model = await get_model(session, request.model)
    if model.checkpoint_id != request.checkpoint.checkpoint_id:
        raise Conflict(f"{request.model} has another checkpoint now: {model.checkpoint_id}")
    host = await _host(stage, request.host_id)
    if host.state is HostState.LOST:
        raise Conflict(f"{request.host_id} is lost: nobody there would take the download up")


async def _check_instance(stage: Stage) -> None:
    request: InstanceInput = await stage.recorded.input(InstanceInput)
    async with stage.database.session() as session:
        instance = await get_instance(session, request.instance_id)
    is_served = instance.state in (InstanceState.READY, InstanceState.DRAINING)
    if instance.epoch != request.epoch or not is_served:
        raise StaleEpoch(
            f"instance {request.instance_id} is {instance.state} under epoch {instance.epoch}; this run "
            f"looks after epoch {request.epoch}",
            instance_id=request.instance_id,
            epoch=request.epoch,
        )


async def _check_host(stage: Stage) -> None:
    request: HostInput = await stage.recorded.input(HostInput)
    host = await _host(stage, request.host_id)
    if host.registration > request.registration and stage.how == "from-start":
        raise StaleEpoch(
            f"{request.host_id} has registered {host.registration} times, this run knows "
            f"{request.registration}: replay it --from-failure, or restart the host's agent",
            host_id=request.host_id,
        )


async def _check_drain(stage: Stage) -> None:
    request: DrainInput = await stage.recorded.input(DrainInput)
    host = await _host(stage, request.host_id)
    if host.state is not HostState.DRAINING:
        raise Conflict(f"{request.host_id} is {host.state}: nobody wants it drained any more")


async def _host(stage: Stage, host_id: str) -> HostRecord:
    async with stage.database.session() as session:
        for host in await list_hosts(session):
            if host.host_id == host_id:
                return host
    raise UnknownHost(f"there is no host {host_id!r}", host_id=host_id)
