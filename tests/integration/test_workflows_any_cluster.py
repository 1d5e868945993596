"""`firstlight workflows` on a Temporal cluster of others: a namespace of its own behind mutual TLS or a key.

The control worker is the product's own process, on the same settings.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from certificates import certificate_folder
from operators_shell import Operator
from sqlalchemy import text
from temporal_gate import Gate, gate_before
from temporalio.client import Client

from firstlight.contracts import naming
from firstlight.contracts.starting import announce_host
from firstlight.database.connection import Database
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.launcher.temporal_client import ensure_search_attributes
from tests.integration.live_cluster import LiveCluster, live_cluster

NAMESPACE = "models.a1b2c"
KEY = "a-key-of-theirs"
RUNNING = 'ExecutionStatus = "Running"'


@pytest_asyncio.fixture(scope="module")
async def theirs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTemporal]:
    """A server without the namespace `default`."""
    server = EmbeddedTemporal(tmp_path_factory.mktemp("theirs"), 0, 0, namespace=NAMESPACE)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_folder(tmp_path_factory.mktemp("fleet") / "certificates")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_folder(tmp_path_factory.mktemp("strangers") / "certificates")


@pytest_asyncio.fixture
async def inside(theirs: EmbeddedTemporal) -> Client:
    """Past the door, to see what has become of it."""
    return await Client.connect(theirs.address, namespace=NAMESPACE)


def shown(folder: Path, *, authority: Path) -> dict[str, str]:
    """Settings that show a certificate of `folder`."""
    return {
        "temporal_namespace": NAMESPACE,
        "temporal_tls_server_root_ca": str(authority / "ca.pem"),
        "temporal_tls_client_cert": str(folder / "cert.pem"),
        "temporal_tls_client_key": str(folder / "key.pem"),
    }


@asynccontextmanager
async def working(
    database_url: str, gate: Gate, inside: Client, folder: Path, settings: dict[str, str]
) -> AsyncIterator[LiveCluster]:
    """A control worker that comes in by the same door."""
    async with live_cluster(
        database_url=database_url,
        temporal_address=gate.address,
        state_dir=folder,
        client=inside,
        **settings,
    ) as cluster:
        await cluster.serve("control-worker")
        yield cluster


async def failed_reconciliation(operator: Operator) -> str:
    """Of the control worker's own schedule, while its table is away."""
    deadline_s = time.monotonic() + 60
    while not (found := await operator.finds("--type", "FleetReconciler", "-n", "1")):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.1)
    return found[0]


async def test_everything_is_done_behind_mutual_tls_in_a_namespace_of_its_own(
    theirs: EmbeddedTemporal,
    inside: Client,
    fleet: Path,
    database: Database,
    database_url: str,
    tmp_path: Path,
) -> None:
    settings = shown(fleet, authority=fleet)
    async with gate_before(theirs.address, fleet) as gate:
        operator = Operator(gate.address, database_url, settings)
        async with database.transaction() as session:
            await session.execute(text("ALTER TABLE hosts RENAME TO away"))
        async with working(database_url, gate, inside, tmp_path, settings):
            workflow_id = await failed_reconciliation(operator)
            async with database.transaction() as session:
                await session.execute(text("ALTER TABLE away RENAME TO hosts"))
            told = await operator.runs("show", workflow_id)
            assert 'relation "hosts" does not exist' in told.stdout, told.stderr
            assert (await operator.is_told("replay", workflow_id, "--verify"))["verdict"] == "same"
            chosen = ("replay", "--all", "--from-failure", "--query", f'WorkflowId = "{workflow_id}"')
            assert [row["verdict"] for row in await operator.is_told(*chosen, "--dry-run")] == ["would"]
            [done] = await operator.is_told(*chosen)
            result = await inside.get_workflow_handle(workflow_id, run_id=done["new_run_id"]).result()
            assert result["hosts"] == 0

            await announce_host(inside, host_id="host-a", registration=1)
            life = naming.host_workflow_id("host-a")
            signalled = await operator.runs("signal", life, "registered", "--data", '{"registration": 2}')
            assert signalled.returncode == 0, signalled.stderr
            assert (await operator.is_told("terminate", life))["verdict"] == "done"
            # No such host is written anywhere: its life does not begin again.
            refused = await operator.is_told("replay", life, "--from-start", code=1)
            assert refused["code"] == "host_not_found"
            await announce_host(inside, host_id="host-a", registration=3)
            assert (await operator.is_told("cancel", life))["verdict"] == "done"
    assert all(metadata.get("temporal-namespace", NAMESPACE) == NAMESPACE for _, metadata in gate.asked)


async def test_who_shows_no_certificate_of_theirs_is_told_so(
    theirs: EmbeddedTemporal, fleet: Path, strangers: Path
) -> None:
    async with gate_before(theirs.address, fleet) as gate:
        foreign = Operator(gate.address, None, shown(strangers, authority=fleet))
        plain = Operator(gate.address, None, {"temporal_namespace": NAMESPACE})
        doubting = Operator(gate.address, None, shown(fleet, authority=strangers))
        hung_up, again, doubted = await asyncio.gather(
            *(operator.runs("list", "--failed") for operator in (foreign, plain, doubting))
        )
        for done in (hung_up, again):
            assert done.returncode == 1 and f"{gate.address} hangs up" in done.stderr, done.stderr
            assert "FIRSTLIGHT_TEMPORAL_TLS_*" in done.stderr
        assert doubted.returncode == 1 and "another authority" in doubted.stderr, doubted.stderr
        assert "FIRSTLIGHT_TEMPORAL_TLS_SERVER_ROOT_CA" in doubted.stderr
    assert gate.asked == []


async def test_an_api_key_is_shown_with_every_call(
    theirs: EmbeddedTemporal, inside: Client, fleet: Path
) -> None:
    await ensure_search_attributes(inside)
    await announce_host(inside, host_id="host-key", registration=1)
    life = naming.host_workflow_id("host-key")
    settings = {
        "temporal_namespace": NAMESPACE,
        "temporal_tls_server_root_ca": str(fleet / "ca.pem"),
        "temporal_api_key": KEY,
    }
    async with gate_before(theirs.address, fleet, asks_certificates=False, api_key=KEY) as gate:
        operator = Operator(gate.address, None, settings)
        assert (await operator.is_told("show", life))["workflow"]["host"] == "host-key"
        listed = await operator.is_told("list", "--host", "host-key", "--query", RUNNING)
        assert [row["workflow_id"] for row in listed] == [life]
        assert (await operator.is_told("terminate", life))["verdict"] == "done"
        assert {metadata.get("authorization") for _, metadata in gate.asked} == {f"Bearer {KEY}"}
        assert any(name.endswith("/TerminateWorkflowExecution") for name, _ in gate.asked)

        without = {name: value for name, value in settings.items() if name != "temporal_api_key"}
        for wrong in ({**settings, "temporal_api_key": "another"}, without):
            done = await Operator(gate.address, None, wrong).runs("list", "--failed")
            assert done.returncode == 1 and "unauthorized" in done.stderr, done.stderr
            assert "FIRSTLIGHT_TEMPORAL_API_KEY" in done.stderr and "another" not in done.stderr
