"""When a run is ready: the API says so, and every host has registered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from firstlight.domain.errors import EngineGone, LaunchError, StartTimeout
from firstlight.domain.names import HostId
from firstlight.launcher.processes import Supervisor
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient

READY_WITHIN_S = 120.0
# A role that ended so often before it was ever ready will not become ready.
HOPELESS_CRASHES = 4
# Often at first, then at a fraction of what was waited: a look takes milliseconds of a core from what starts.
_LOOK_AT_LEAST_EVERY_S, _LOOK_AT_MOST_EVERY_S = 0.3, 0.05
_LOOK_AFTER = 0.05


async def wait_until(
    is_true: Callable[[], Awaitable[bool]],
    *,
    supervisor: Supervisor,
    role: str,
    within_s: float = READY_WITHIN_S,
) -> None:
    """Look often until `is_true`. Raises: LaunchError with the log's end when the role keeps ending."""
    begun_s = time.monotonic()
    deadline_s = begun_s + within_s
    while not await is_true():
        if supervisor.crashes_in_a_row(role) >= HOPELESS_CRASHES:
            raise LaunchError(f"{role} keeps ending. The last lines of its log:\n{supervisor.log_tail(role)}")
        if time.monotonic() > deadline_s:
            raise LaunchError(
                f"{role} was not ready within {within_s:.0f} s. The last lines of its log:\n"
                f"{supervisor.log_tail(role)}"
            )
        waited_s = time.monotonic() - begun_s
        await asyncio.sleep(min(max(waited_s * _LOOK_AFTER, _LOOK_AT_MOST_EVERY_S), _LOOK_AT_LEAST_EVERY_S))


async def api_is_ready(http: httpx.AsyncClient) -> bool:
    return await _get(http, "/readyz") is not None


async def host_is_ready(http: httpx.AsyncClient, host: HostId, *, address_file: Path) -> bool:
    """Whether the host of this very run has joined: the row of an earlier one may still look alive."""
    address = _host_address(address_file)
    answer = await _get(http, "/admin/v1/hosts") if address else None
    if answer is None:
        return False
    return any(
        row["host_id"] == host and row["host_address"] == address and row["state"] in ("ready", "draining")
        for row in answer.json()["hosts"]
    )


async def engines_are_warm(*, address_file: Path) -> bool:
    """Whether the host has a spare engine, so that a start need not wait for imports, or wants none."""
    address = _host_address(address_file)
    if address is None:
        return False
    async with Channels() as channels:
        try:
            listed = await HostClient(channels, address).list_engines()
        except (EngineGone, StartTimeout):
            return False
    return listed.lets_spares_go or any(engine.state != "starting" for engine in listed.engines)


def _host_address(address_file: Path) -> str | None:
    """What the host's supervisor publishes once it serves, and takes away before it starts."""
    try:
        return str(json.loads(address_file.read_text())["host_address"])
    except (OSError, ValueError, KeyError):
        return None


async def _get(http: httpx.AsyncClient, path: str) -> httpx.Response | None:
    try:
        response = await http.get(path)
    except httpx.TransportError:
        return None
    if response.status_code in (401, 403):
        # Keys in the database close the API as those in the settings do, and only the latter we know.
        raise LaunchError(
            "the API asks for a key, as this database has some: name an admin key in FIRSTLIGHT_API_KEYS"
        )
    return response if response.is_success else None
