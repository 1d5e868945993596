"""The embedded Temporal: what it is started with, and that its file outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from firstlight.contracts.naming import SEARCH_ATTRIBUTES
from firstlight.domain.errors import PortTaken
from firstlight.launcher.embedded.temporal import EmbeddedTemporal


async def test_the_namespace_has_our_search_attributes_and_keeps_runs_for_a_month(
    temporal_server: EmbeddedTemporal,
) -> None:
    client = await Client.connect(temporal_server.address)
    attributes = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace="default")
    )
    wanted = {key.name: int(key.indexed_value_type) for key in SEARCH_ATTRIBUTES}
    assert {name: attributes.custom_attributes.get(name) for name in wanted} == wanted
    described = await client.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace="default")
    )
    assert described.config.workflow_execution_retention_ttl.ToTimedelta() == timedelta(days=30)


async def test_it_listens_on_loopback_alone(temporal_server: EmbeddedTemporal) -> None:
    for number in (int(temporal_server.address.split(":")[1]), int(temporal_server.ui_url.split(":")[-1])):
        with socket.create_connection(("127.0.0.1", number), timeout=5):
            pass
        with socket.socket() as elsewhere:
            # Were it bound to every address, this one would be taken too.
            elsewhere.bind(("127.0.0.2", number))


async def test_after_a_kill_it_goes_on_from_its_file_at_the_same_address(tmp_path: Path) -> None:
    server = EmbeddedTemporal(tmp_path, 0, 0, namespace="chess")
    address = await server.start()
    try:
        client = await Client.connect(address, namespace="chess")
        handle = await client.start_workflow("Nobody", id="kept", task_queue="nobody")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.wait_for(server.wait_exit(), 10) == -signal.SIGKILL
        assert server.pid is None
        assert await server.start() == address
        client = await Client.connect(address, namespace="chess")
        assert (await client.get_workflow_handle("kept").describe()).run_id == handle.first_execution_run_id
    finally:
        await server.stop()
    assert server.pid is None
    await server.stop()


async def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(PortTaken, match="FIRSTLIGHT_TEMPORAL_PORT"):
            await EmbeddedTemporal(tmp_path, number, 0).start()
        with pytest.raises(PortTaken, match="FIRSTLIGHT_TEMPORAL_UI_PORT"):
            await EmbeddedTemporal(tmp_path, 0, number).start()


_PARENT = """
import asyncio, sys
from pathlib import Path
from firstlight.launcher.embedded.temporal import EmbeddedTemporal

async def main() -> None:
    server = EmbeddedTemporal(Path(sys.argv[1]), 0, 0)
    await server.start()
    print(server.pid, flush=True)
    await server.wait_exit()

asyncio.run(main())
"""


async def test_it_ends_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 60))
    parent.kill()
    await parent.wait()

    async def gone() -> None:
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await asyncio.wait_for(gone(), 15)
