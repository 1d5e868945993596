"""One Temporal server per state directory: the CLI's single-node server on a file, with its UI.

It is a child of the launcher and ends with it; what it knew is in its file, and the next one goes on from
there. Not for production: one node, no TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

from google.protobuf.duration_pb2 import Duration
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from firstlight.domain.errors import DiskFull, LaunchError, PortTaken
from firstlight.launcher.embedded.last_words import reason_of
from firstlight.launcher.embedded.temporal_command import ADDRESS, command, find_program
from firstlight.launcher.log_files import open_log, tail
from firstlight.launcher.machine_checks import check_port, disk_full, free_port, is_about_space
from firstlight.launcher.parent_death import die_with_parent

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_RETRY_S = 0.03
# How long a closed workflow can be looked up; the server's own default is one day.
RETENTION = timedelta(days=30)


class EmbeddedTemporal:
    """The server of `state_dir`/temporal. Port 0: any free one. Its owner restarts it, see `wait_exit`."""

    def __init__(self, state_dir: Path, port: int, ui_port: int, *, namespace: str = "default") -> None:
        self._folder = state_dir.resolve() / "temporal"
        # Chosen once, so that a restart comes back where its clients look for it.
        self._port = port or free_port(ADDRESS)
        self._ui_port = ui_port or free_port(ADDRESS)
        self._namespace = namespace
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"{ADDRESS}:{self._port}"

    @property
    def ui_url(self) -> str:
        return f"http://{ADDRESS}:{self._ui_port}"

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def log_path(self) -> Path:
        return self._folder / "server.log"

    async def start(self) -> str:
        """Start the server and return its address once it serves the namespace.

        Raises: PortTaken naming the setting, LaunchError.
        """
        if self.pid is not None:
            return self.address
        check_port(ADDRESS, self._port, setting="FIRSTLIGHT_TEMPORAL_PORT")
        check_port(ADDRESS, self._ui_port, setting="FIRSTLIGHT_TEMPORAL_UI_PORT")
        self._process = await self._spawn()
        try:
            await self._until_serving(self._process)
        except BaseException:
            await self.stop()
            raise
        return self.address

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not heed it. Idempotent."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def wait_exit(self) -> int | None:
        """Return the exit code when the server ends (negative: a signal); None if it does not run."""
        return await self._process.wait() if self._process is not None else None

    async def _spawn(self) -> asyncio.subprocess.Process:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            argv = command(
                program=find_program(),
                database=self._folder / "temporal.db",
                namespace=self._namespace,
                port=self._port,
                ui_port=self._ui_port,
            )
            with open_log(self.log_path) as log:
                return await asyncio.create_subprocess_exec(
                    *argv,
                    # A TEMPORAL_* variable or a configuration in the home directory would redirect it.
                    env={"PATH": "/usr/bin:/bin", "HOME": str(self._folder)},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=die_with_parent(),
                )
        except OSError as error:
            raise LaunchError(f"cannot start Temporal in {self._folder}: {error}") from error

    async def _until_serving(self, process: asyncio.subprocess.Process) -> None:
        """Wait for whichever is first: the namespace is served, the process ends, the deadline."""
        serving = asyncio.create_task(self._prepare_namespace())
        ended = asyncio.create_task(process.wait())
        done, pending = await asyncio.wait(
            {serving, ended}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        if serving in done:
            return serving.result()
        raise self._failure(
            f"ended with code {process.returncode}"
            if ended in done
            else f"did not serve in {START_TIMEOUT_S:.0f} s"
        )

    async def _prepare_namespace(self) -> None:
        await _until_listening(self._port)
        client = await _connect(self.address, self._namespace)
        await _extend_retention(client, self._namespace)

    def _failure(self, what: str) -> LaunchError | DiskFull:
        told = tail(self.log_path, 8)
        if "address already in use" in told:
            return PortTaken(
                f"another program took port {self._port} or {self._ui_port} while Temporal started: set "
                "FIRSTLIGHT_TEMPORAL_PORT and FIRSTLIGHT_TEMPORAL_UI_PORT to free ports"
            )
        if is_about_space(told):
            return disk_full(f"the disk of {self._folder} is full")
        return LaunchError(
            f"the embedded Temporal {what}: {reason_of(told)} (its log is {self.log_path}); if its file is "
            f"damaged, restore {self._folder}, or choose another FIRSTLIGHT_STATE_DIR"
        )


async def _until_listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection(ADDRESS, port)
        except OSError:
            await asyncio.sleep(_RETRY_S)
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return


async def _connect(address: str, namespace: str) -> Client:
    """A client, once the server describes the namespace: it listens before it serves."""
    while True:
        try:
            client = await Client.connect(address, namespace=namespace)
            await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=namespace))
        except (RPCError, RuntimeError):
            # RuntimeError is how the SDK tells that it could not connect.
            await asyncio.sleep(_RETRY_S)
            continue
        return client


async def _extend_retention(client: Client, namespace: str) -> None:
    retention = Duration()
    retention.FromTimedelta(RETENTION)
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=namespace, config=NamespaceConfig(workflow_execution_retention_ttl=retention)
        )
    )
