"""The parts of one local run, started in the order they need each other and stopped the other way round."""

from __future__ import annotations

import httpx
from rich.console import Console

from firstlight.domain.names import HostId
from firstlight.launcher.api_tls import api_verification
from firstlight.launcher.backing import BackingServices
from firstlight.launcher.gpu_host import host_config, host_ids
from firstlight.launcher.processes import RoleSpec, Supervisor
from firstlight.launcher.progress import Steps
from firstlight.launcher.readiness import api_is_ready, engines_are_warm, host_is_ready, wait_until
from firstlight.launcher.roles import control_role, gpu_host_role
from firstlight.launcher.run_file import RunRecord, own_mark
from firstlight.launcher.together import together
from firstlight.settings import Settings

API, CONTROL_WORKER = "api", "control-worker"


class Cluster:
    """One run. `start` may be left at any point by an error or a cancellation; `stop` then ends the rest."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._supervisor = Supervisor(say=self._say, changed=self._write_run_file)
        self._backing = BackingServices(settings, say=self._say, changed=self._write_run_file)
        self._is_ready = False

    async def start(self) -> RunRecord:
        """Start every part and wait until requests can be served. Raises: LaunchError, InvalidSettings."""
        with Steps(self._console) as steps:
            self._settings = await self._backing.start(steps)
            for role in self._roles():
                await self._supervisor.start(role)
            async with httpx.AsyncClient(
                base_url=self._api_url(),
                headers=self._key(),
                trust_env=False,
                verify=api_verification(self._settings),
            ) as http:
                await together(
                    self._wait_for_api(http, steps),
                    *(self._wait_for_host(http, steps, host) for host in host_ids(self._settings)),
                )
        self._is_ready = True
        return self._write_run_file()

    async def stop(self) -> None:
        """Front end first, so that no new work comes; then the hosts together; the databases last."""
        await self._supervisor.stop_together([API])
        await self._supervisor.stop_together([CONTROL_WORKER, *host_ids(self._settings)])
        await self._backing.stop()

    def _roles(self) -> list[RoleSpec]:
        hosts = [gpu_host_role(self._settings, host) for host in host_ids(self._settings)]
        return [*hosts, control_role(self._settings, CONTROL_WORKER), control_role(self._settings, API)]

    async def _wait_for_api(self, http: httpx.AsyncClient, steps: Steps) -> None:
        with steps.step(f"API on {self._api_url()}"):
            await wait_until(lambda: api_is_ready(http), supervisor=self._supervisor, role=API)

    async def _wait_for_host(self, http: httpx.AsyncClient, steps: Steps, host: HostId) -> None:
        with steps.step(f"GPU host {host}"):
            address_file = host_config(self._settings, host).address_file
            await wait_until(
                lambda: host_is_ready(http, host, address_file=address_file),
                supervisor=self._supervisor,
                role=host,
            )
        with steps.step(f"GPU host {host}: spare engine"):
            await wait_until(
                lambda: engines_are_warm(address_file=address_file), supervisor=self._supervisor, role=host
            )

    def _key(self) -> dict[str, str]:
        """The API asks for one as soon as any is configured, also of us."""
        key = self._settings.first_api_key()
        return {"authorization": f"Bearer {key}"} if key else {}

    def _api_url(self) -> str:
        settings = self._settings
        # A wildcard address is one to listen on, not one to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)  # noqa: S104
        scheme = "http" if settings.api_tls_cert is None else "https"
        return (
            f"{scheme}://[{host}]:{settings.api_port}"
            if ":" in host
            else f"{scheme}://{host}:{settings.api_port}"
        )

    def _write_run_file(self) -> RunRecord:
        record = RunRecord(
            launcher=own_mark(),
            api_url=self._api_url(),
            database_url=self._settings.database_url or "",
            temporal_address=self._settings.temporal_address or "",
            temporal_ui_url=self._settings.temporal_ui_url or "",
            is_ready=self._is_ready,
            processes=self._backing.marks() | self._supervisor.marks(),
        )
        record.write(self._settings.state_dir)
        return record

    def _say(self, text: str) -> None:
        self._console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)
