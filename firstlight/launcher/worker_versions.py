"""Which version of the control worker's code takes new workflows, in Temporal's worker versioning.

A worker with a build id gets nothing until its version is made the current one. A run goes on with
whichever version is current at its next step, so new code must replay what older code recorded (see
tests/replay). A run cannot be bound to its version by its class, because the server refuses that from workers
without a build id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from temporalio.api.deployment.v1 import WorkerDeploymentInfo
from temporalio.api.enums.v1 import RoutingConfigUpdateState, VersionDrainageStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.client import Client
from temporalio.common import VersioningBehavior
from temporalio.common import WorkerDeploymentVersion as OwnVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from firstlight.contracts.versions import CONTROL_DEPLOYMENT
from firstlight.domain.errors import LaunchError
from firstlight.recovery.found import lacks_namespace
from firstlight.settings import Settings

RETRY_S = 0.2
# Words of Temporal, which has no code for it.
_MISSING = "missing active task queues"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerVersion:
    """`role` is current, ramping, draining, drained or inactive."""

    build_id: str
    role: str
    ramp_percent: float = 0.0


def deployment_config(settings: Settings) -> WorkerDeploymentConfig | None:
    """None without a build id: the worker is unversioned, and takes whatever comes."""
    if settings.worker_build_id is None:
        return None
    return WorkerDeploymentConfig(
        version=OwnVersion(CONTROL_DEPLOYMENT, settings.worker_build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


async def list_versions(client: Client) -> list[WorkerVersion]:
    """Newest first; empty where no worker with a build id has ever polled."""
    info = await _describe(client)
    if info is None:
        return []
    routing = info.routing_config
    found = []
    for one in info.version_summaries:
        build_id = one.deployment_version.build_id
        is_ramping = build_id == routing.ramping_deployment_version.build_id
        found.append(
            WorkerVersion(
                build_id=build_id,
                role="current"
                if build_id == routing.current_deployment_version.build_id
                else "ramping"
                if is_ramping
                else _drainage(one.drainage_status),
                ramp_percent=routing.ramping_version_percentage if is_ramping else 0.0,
            )
        )
    return found


async def promote(client: Client, build_id: str, *, within_s: float) -> None:
    """Make `build_id` the version that takes new workflows, once a worker of it polls. Idempotent.

    Once this returns, every task queue knows of it. Raises: LaunchError if none polls in time, or some queue
    is not told in time.
    """
    deadline_s = time.monotonic() + within_s
    await _until_known(client, build_id, within_s=within_s)
    request = SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace, deployment_name=CONTROL_DEPLOYMENT, build_id=build_id
    )
    change = partial(client.workflow_service.set_worker_deployment_current_version, request)
    await _once_it_polls_everywhere(change, build_id, deadline_s=deadline_s)
    await _until_routed(client, build_id, deadline_s=deadline_s)


async def ramp(client: Client, build_id: str, *, percent: float, within_s: float) -> None:
    """Give `percent` of new workflows to `build_id`, the rest to the current version. Raises: LaunchError."""
    deadline_s = time.monotonic() + within_s
    await _until_known(client, build_id, within_s=within_s)
    request = SetWorkerDeploymentRampingVersionRequest(
        namespace=client.namespace,
        deployment_name=CONTROL_DEPLOYMENT,
        build_id=build_id,
        percentage=percent,
    )
    change = partial(client.workflow_service.set_worker_deployment_ramping_version, request)
    await _once_it_polls_everywhere(change, build_id, deadline_s=deadline_s)
    await _until_routed(client, build_id, deadline_s=deadline_s)


async def _until_known(client: Client, build_id: str, *, within_s: float) -> None:
    deadline_s = time.monotonic() + within_s
    while build_id not in {one.build_id for one in await list_versions(client)}:
        if time.monotonic() > deadline_s:
            raise LaunchError(
                f"no control worker with FIRSTLIGHT_WORKER_BUILD_ID={build_id} polls: start one first"
            )
        await asyncio.sleep(RETRY_S)


async def _once_it_polls_everywhere(
    change: Callable[[], Awaitable[object]], build_id: str, *, deadline_s: float
) -> None:
    """A worker that has just begun polls one of its queues before the others; until then Temporal refuses."""
    while True:
        try:
            await change()
            return
        except RPCError as failure:
            if failure.status is not RPCStatusCode.FAILED_PRECONDITION or _MISSING not in failure.message:
                raise
            if time.monotonic() > deadline_s:
                raise LaunchError(
                    f"workers with FIRSTLIGHT_WORKER_BUILD_ID={build_id} do not poll every queue that the "
                    f"current version polls: {failure.message}"
                ) from failure
        await asyncio.sleep(RETRY_S)


async def _until_routed(client: Client, build_id: str, *, deadline_s: float) -> None:
    """Temporal answers a change before its task queues have heard of it; older servers do not tell."""
    in_progress = RoutingConfigUpdateState.ROUTING_CONFIG_UPDATE_STATE_IN_PROGRESS
    while (info := await _describe(client)) is not None and info.routing_config_update_state == in_progress:
        if time.monotonic() > deadline_s:
            raise LaunchError(
                f"the change for {build_id} is made, but not every task queue has heard of it yet: "
                "`firstlight workers list` shows it, and this command can be given again"
            )
        await asyncio.sleep(RETRY_S)


async def _describe(client: Client) -> WorkerDeploymentInfo | None:
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=CONTROL_DEPLOYMENT)
    try:
        return (await client.workflow_service.describe_worker_deployment(request)).worker_deployment_info
    except RPCError as failure:
        if failure.status is RPCStatusCode.NOT_FOUND and not lacks_namespace(failure):
            return None
        raise


def _drainage(status: VersionDrainageStatus.ValueType) -> str:
    return {
        VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINING: "draining",
        VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINED: "drained",
    }.get(status, "inactive")


__all__ = ["WorkerVersion", "deployment_config", "list_versions", "promote", "ramp"]
