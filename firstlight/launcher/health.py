"""Whether a role of this machine or container does its work, asked from beside it, for probes.

Each answers for itself alone: an API that waits for Postgres is alive, and a control worker without Temporal
need not be restarted.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping

import httpx
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.service import RPCError

from firstlight.contracts.naming import CONTROL_QUEUE
from firstlight.domain.errors import EngineGone, InvalidSettings, LaunchError, StartTimeout
from firstlight.launcher.api_tls import api_verification
from firstlight.launcher.gpu_host import host_dir, host_ids
from firstlight.launcher.temporal_client import connect_within
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient
from firstlight.rpc.identity import assume
from firstlight.settings import Settings

ANSWERS_WITHIN_S = 4.0


async def check_role(role: str, settings: Settings) -> str:
    """One sentence of what was found well. Raises: LaunchError with what is wrong, InvalidSettings."""
    check = CHECKS.get(role)
    if check is None:
        raise InvalidSettings(f"no role is called {role!r}; there are {', '.join(CHECKS)}", setting="role")
    try:
        async with asyncio.timeout(ANSWERS_WITHIN_S):
            return await check(settings)
    except TimeoutError as failure:
        raise LaunchError(f"{role} did not answer within {ANSWERS_WITHIN_S:.0f} s") from failure


async def _api(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.api_tls_cert is not None else "http"
    url = f"{scheme}://{host}:{settings.api_port}/healthz"
    try:
        async with httpx.AsyncClient(verify=api_verification(settings), trust_env=False) as http:
            answer = await http.get(url)
    except httpx.TransportError as failure:
        raise LaunchError(f"nothing answers at {url}: {failure}") from failure
    if not answer.is_success:
        raise LaunchError(f"{url} answered {answer.status_code}")
    return f"the API answers at {url}"


async def _gpu_host(settings: Settings) -> str:
    assume(settings.rpc_tls_dir, may_be_plain=settings.rpc_plain)
    [host_id, *others] = host_ids(settings)
    if others:
        raise InvalidSettings("name the one host in FIRSTLIGHT_HOST_IDS", setting="FIRSTLIGHT_HOST_IDS")
    path = host_dir(settings.state_dir, host_id) / "host.json"
    try:
        address = json.loads(path.read_text())["host_address"]
    except (OSError, ValueError, KeyError) as failure:
        raise LaunchError(f"{host_id} does not serve yet: {path} is not there") from failure
    try:
        async with Channels() as channels:
            found = await HostClient(channels, address).list_engines()
    except (EngineGone, StartTimeout) as failure:
        raise LaunchError(f"{host_id} does not answer at {address}: {failure.message}") from failure
    return f"{host_id} answers at {address} with {found.gpu_count} GPUs or slots"


async def _control_worker(settings: Settings) -> str:
    client = await connect_within(settings, within_s=ANSWERS_WITHIN_S)
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=CONTROL_QUEUE),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    try:
        found = await client.workflow_service.describe_task_queue(request)
    except RPCError as failure:
        raise LaunchError(f"Temporal does not tell who polls: {failure.message}") from failure
    # The SDK calls a worker by its process id and host name; a container has a name of its own.
    here = [one.identity for one in found.pollers if one.identity.endswith(f"@{socket.gethostname()}")]
    if not here:
        raise LaunchError(f"no worker of {socket.gethostname()} polls {CONTROL_QUEUE}")
    return f"{here[0]} polls {CONTROL_QUEUE}"


CHECKS: Mapping[str, Callable[[Settings], Awaitable[str]]] = {
    "api": _api,
    "control-worker": _control_worker,
    "gpu-host": _gpu_host,
}
