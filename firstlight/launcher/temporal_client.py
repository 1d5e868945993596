"""A Temporal client for any cluster, and what the cluster must know before the first workflow starts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from firstlight.contracts import naming
from firstlight.contracts.hosts import ReconcileInput
from firstlight.contracts.starting import TASK_TIMEOUT
from firstlight.domain.errors import InvalidSettings, LaunchError
from firstlight.launcher.temporal_context import interceptors
from firstlight.settings import Settings

log = logging.getLogger(__name__)

# What a cluster that is starting, or whose network is, answers.
_AWAY = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.UNKNOWN)
# Words of the SDK: a key that is not taken, a server's certificate that we do not take, a server that hangs
# up on whoever shows none, or none of its own authority.
_NOT_LET_IN = re.compile(r"code: (Unauthenticated|PermissionDenied)")
_NOT_TRUSTED = "InvalidCertificate"
_HUNG_UP = re.compile(r"(?i)connection closed|close_notify|broken pipe|connection reset")
LONGEST_PAUSE_S = 2.0
CALL_ENDS_WITHIN_S = 2.0


async def connect(settings: Settings) -> Client:
    """Connect as the settings say, waiting for a cluster that does not answer yet, however long.

    The namespace knows our search attributes afterwards.
    Raises: InvalidSettings for an address, namespace or key that the cluster refuses.
    """
    pause_s = 0.1
    while True:
        try:
            return await _to_its_end(_connected(settings))
        except RuntimeError as failure:
            # How the SDK says that nobody listens there.
            reason = _unless_kept_out(settings, failure)
        except RPCError as failure:
            if failure.status not in _AWAY:
                raise refused(settings, failure) from failure
            reason = failure.message
        if pause_s == 0.1:
            log.warning("Temporal at %s does not answer, waiting: %s", settings.temporal_address, reason)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def check_answers(settings: Settings, *, within_s: float) -> None:
    """Raises: LaunchError for a cluster that is silent for so long, InvalidSettings for one that refuses."""
    await connect_within(settings, within_s=within_s)


async def connect_within(settings: Settings, *, within_s: float, prepares: bool = True) -> Client:
    """As `connect`, for someone who waits only so long. Raises: LaunchError, InvalidSettings.

    Who only looks (`prepares` False) changes nothing of the cluster, nor needs to be allowed to.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return await _to_its_end(_connected(settings) if prepares else _connect_once(settings))
        except RuntimeError as failure:
            reason = _unless_kept_out(settings, failure)
        except RPCError as failure:
            if failure.status not in _AWAY:
                raise refused(settings, failure) from failure
            reason = failure.message
        if time.monotonic() > deadline_s:
            raise _silent(settings, reason)
        await asyncio.sleep(0.2)


def _unless_kept_out(settings: Settings, failure: RuntimeError) -> str:
    """Why there is no connection. Raises: InvalidSettings where waiting does not help."""
    reason = str(failure)
    if _NOT_LET_IN.search(reason):
        raise InvalidSettings(
            f"Temporal at {settings.temporal_address} does not let us in ({_innermost(reason)}): mend "
            "FIRSTLIGHT_TEMPORAL_API_KEY, or the certificate of FIRSTLIGHT_TEMPORAL_TLS_CLIENT_CERT",
            setting="FIRSTLIGHT_TEMPORAL_API_KEY",
        ) from failure
    if _NOT_TRUSTED in reason:
        raise InvalidSettings(
            f"Temporal at {settings.temporal_address} shows a certificate of another authority: mend "
            "FIRSTLIGHT_TEMPORAL_TLS_SERVER_ROOT_CA",
            setting="FIRSTLIGHT_TEMPORAL_TLS_SERVER_ROOT_CA",
        ) from failure
    return reason


def _silent(settings: Settings, reason: str) -> LaunchError:
    if _HUNG_UP.search(reason):
        return LaunchError(
            f"Temporal at {settings.temporal_address} hangs up ({_innermost(reason)}): it may want TLS, or "
            "a certificate that it knows: mend FIRSTLIGHT_TEMPORAL_TLS_*, or FIRSTLIGHT_TEMPORAL_ADDRESS"
        )
    return LaunchError(
        f"Temporal at {settings.temporal_address} does not answer ({_innermost(reason)}): start it, "
        "or mend FIRSTLIGHT_TEMPORAL_ADDRESS"
    )


def _innermost(reason: str) -> str:
    """The SDK prints a whole chain of its own structures; the last quoted text in it is the reason."""
    quoted = re.findall(r'(?:message|error): "([^"]+)"', reason)
    return quoted[-1] if quoted else reason.splitlines()[0]


def refused(settings: Settings, failure: RPCError) -> InvalidSettings:
    """What to say of a cluster that answers, but does not know this namespace or not us."""
    return InvalidSettings(
        f"Temporal at {settings.temporal_address} refuses namespace "
        f"{settings.temporal_namespace!r}: {failure.message.rstrip('.')}; "
        "create it with the cluster's own tools, or mend FIRSTLIGHT_TEMPORAL_NAMESPACE",
        setting="FIRSTLIGHT_TEMPORAL_NAMESPACE",
    )


async def _connected(settings: Settings) -> Client:
    client = await _connect_once(settings)
    await ensure_search_attributes(client)
    return client


async def _to_its_end(work: Coroutine[Any, Any, Client]) -> Client:
    """Who is cancelled waits a little for what the SDK is doing.

    Its own threads go on with a call that nobody waits for, and print a crash if Python is gone when it ends.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=CALL_ENDS_WITHIN_S)
        if task.done() and not task.cancelled():
            # Looked at, so that nobody reports it as lost.
            task.exception()
        raise


async def _connect_once(settings: Settings) -> Client:
    if settings.temporal_address is None:
        raise InvalidSettings(
            "FIRSTLIGHT_TEMPORAL_ADDRESS must name the Temporal server (`firstlight up` brings one along)",
            setting="FIRSTLIGHT_TEMPORAL_ADDRESS",
        )
    key = settings.temporal_api_key
    return await Client.connect(
        settings.temporal_address,
        namespace=settings.temporal_namespace,
        api_key=key.get_secret_value() if key is not None else None,
        tls=tls_config(settings),
        interceptors=interceptors(),
    )


def tls_config(settings: Settings) -> TLSConfig | bool:
    """False without TLS; an API key or a certificate asks for TLS by itself. Raises: InvalidSettings."""
    files = (
        settings.temporal_tls_server_root_ca,
        settings.temporal_tls_client_cert,
        settings.temporal_tls_client_key,
    )
    if not (settings.temporal_tls or settings.temporal_api_key or any(files)):
        return False
    root_ca, certificate, key = (_read(path) for path in files)
    return TLSConfig(server_root_ca_cert=root_ca, client_cert=certificate, client_private_key=key)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as failure:
        raise InvalidSettings(f"cannot read {path}: {failure.strerror}", path=str(path)) from failure


async def ensure_search_attributes(client: Client) -> None:
    """Add those of ours that the namespace lacks. Idempotent; any number of roles may call it at once."""
    missing = await _missing_attributes(client)
    if not missing:
        return
    try:
        await client.operator_service.add_search_attributes(
            AddSearchAttributesRequest(namespace=client.namespace, search_attributes=missing)
        )
    except RPCError as failure:
        if failure.status is RPCStatusCode.ALREADY_EXISTS:
            return
        if failure.status not in (RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNIMPLEMENTED):
            raise
        # Temporal Cloud has its own tool for this.
        raise InvalidSettings(
            f"namespace {client.namespace} lacks the search attributes {', '.join(sorted(missing))} and does "
            "not let this client add them: add them with the cluster's own tools",
            setting="FIRSTLIGHT_TEMPORAL_NAMESPACE",
        ) from failure


async def _missing_attributes(client: Client) -> dict[str, IndexedValueType.ValueType]:
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    return {
        key.name: IndexedValueType.ValueType(int(key.indexed_value_type))
        for key in naming.SEARCH_ATTRIBUTES
        if key.name not in known.custom_attributes
    }


async def ensure_reconciler(client: Client, *, every_s: float) -> None:
    """The one schedule of FleetReconciler, with this period. Idempotent."""
    schedule = _reconciler(every_s)
    try:
        await client.create_schedule(naming.RECONCILER_SCHEDULE_ID, schedule, trigger_immediately=True)
    except ScheduleAlreadyRunningError:
        handle = client.get_schedule_handle(naming.RECONCILER_SCHEDULE_ID)

        def renewed(found: ScheduleUpdateInput) -> ScheduleUpdate | None:
            spec = found.description.schedule.spec
            return None if spec.intervals == schedule.spec.intervals else ScheduleUpdate(schedule)

        await handle.update(renewed)


def _reconciler(every_s: float) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(
            naming.FLEET_RECONCILER,
            ReconcileInput(),
            id=naming.RECONCILER_WORKFLOW_ID,
            task_queue=naming.CONTROL_QUEUE,
            task_timeout=TASK_TIMEOUT,
            execution_timeout=timedelta(minutes=10),
            static_summary="Compare Postgres with what every host reports, and mend drift",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(seconds=every_s))]),
        # A late comparison is as good as a missed one is useless.
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=timedelta(seconds=10)),
    )
