"""A Temporal cluster that was never prepared for us: connect, teach it our search attributes, schedule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import TLSConfig
from temporalio.testing import WorkflowEnvironment
from workflow_world import world

from firstlight.contracts.naming import RECONCILER_SCHEDULE_ID, SEARCH_ATTRIBUTES
from firstlight.domain.errors import InvalidSettings
from firstlight.launcher.embedded.temporal_command import find_program
from firstlight.launcher.machine_checks import free_port
from firstlight.launcher.temporal_client import connect, connect_within, ensure_reconciler, tls_config
from firstlight.settings import read_settings


@pytest_asyncio.fixture(scope="module")
async def address() -> AsyncIterator[str]:
    """A server as it comes, without our attributes."""
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=find_program()) as bare:
        yield bare.client.service_client.config.target_host


async def attributes(client: Client) -> set[str]:
    known = await client.operator_service.list_search_attributes(
        ListSearchAttributesRequest(namespace=client.namespace)
    )
    return set(known.custom_attributes)


async def test_a_bare_cluster_learns_our_attributes_and_runs_a_start(address: str) -> None:
    ours = {key.name for key in SEARCH_ATTRIBUTES}
    settings = read_settings(temporal_address=address)
    looking = await connect_within(settings, within_s=10, prepares=False)
    assert not ours & await attributes(looking), "who looks changes nothing"
    clients = await asyncio.gather(*(connect(settings) for _ in range(4)))
    assert ours <= await attributes(clients[0])
    async with world(clients[0]) as here:
        result = await (await here.start(here.plan())).result()
    assert result.endpoint == "127.0.0.1:4000"


async def test_there_is_one_reconciler_with_the_period_last_set(address: str) -> None:
    client = await connect(read_settings(temporal_address=address))
    for every_s in (30.0, 30.0, 12.0):
        await ensure_reconciler(client, every_s=every_s)
    handle = client.get_schedule_handle(RECONCILER_SCHEDULE_ID)
    [interval] = (await handle.describe()).schedule.spec.intervals
    await handle.delete()
    assert interval.every == timedelta(seconds=12)


async def test_a_namespace_that_is_not_there_is_told(address: str) -> None:
    with pytest.raises(InvalidSettings, match="nowhere"):
        await connect(read_settings(temporal_address=address, temporal_namespace="nowhere"))


async def test_a_server_that_is_late_is_waited_for() -> None:
    port = free_port("127.0.0.1")
    connecting = asyncio.create_task(connect(read_settings(temporal_address=f"127.0.0.1:{port}")))
    await asyncio.wait([connecting], timeout=0.5)
    assert not connecting.done()
    async with await WorkflowEnvironment.start_local(dev_server_existing_path=find_program(), port=port):
        async with asyncio.timeout(15):
            assert (await connecting).namespace == "default"


def test_tls_is_asked_for_by_flag_key_or_certificate(tmp_path: Path) -> None:
    assert tls_config(read_settings()) is False
    assert isinstance(tls_config(read_settings(temporal_tls=True)), TLSConfig)
    assert isinstance(tls_config(read_settings(temporal_api_key="secret")), TLSConfig)
    authority = tmp_path / "ca.pem"
    authority.write_bytes(b"certificate")
    found = tls_config(read_settings(temporal_tls_server_root_ca=authority))
    assert isinstance(found, TLSConfig)
    assert found.server_root_ca_cert == b"certificate"
    with pytest.raises(InvalidSettings, match=r"missing\.pem"):
        tls_config(read_settings(temporal_tls_client_cert=tmp_path / "missing.pem"))
