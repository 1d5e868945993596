"""Who may call whom: certificates between roles, of the API and towards Temporal, on real connections."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_stand import until
from certificates import certificate_folder
from fake_engine import FakeStore

from firstlight.cli.client import ApiClient
from firstlight.domain.errors import EngineGone, FirstlightError, InvalidSettings, LaunchError
from firstlight.launcher.api_server import ApiServer, server_config
from firstlight.launcher.api_tls import api_verification
from firstlight.launcher.embedded.temporal import EmbeddedTemporal
from firstlight.launcher.temporal_client import connect_within
from firstlight.rpc import identity
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import StoreClient
from firstlight.rpc.server import bind, new_server
from firstlight.rpc.store_pb2_grpc import add_StoreServicer_to_server
from firstlight.settings import Settings
from gpu_worker.host.config import HostConfig
from gpu_worker.store.config import StoreConfig

OTHERS = "192.0.2.7"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_folder(tmp_path_factory.mktemp("fleet") / "certificates")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_folder(tmp_path_factory.mktemp("strangers") / "certificates")


@pytest.fixture(autouse=True)
def nobody_afterwards() -> Iterator[None]:
    yield
    identity.assume(None)


@asynccontextmanager
async def store_served() -> AsyncIterator[str]:
    """A store's service on the product's own server, by whoever this process is now."""
    server, store = new_server(), FakeStore({})
    add_StoreServicer_to_server(store, server)
    address = bind(server, bind_address="127.0.0.1", port=0)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(grace=0)
        await store.stop()


async def test_roles_of_one_fleet_call_each_other_and_nobody_else(fleet: Path, strangers: Path) -> None:
    identity.assume(fleet)
    async with store_served() as address:
        async with Channels() as channels:
            await StoreClient(channels, address).prepare(checkpoint_id="tiny@abcd1234")
        for other in (None, strangers):
            identity.assume(other)
            async with Channels() as channels:
                with pytest.raises(EngineGone):
                    await StoreClient(channels, address).prepare(checkpoint_id="tiny@abcd1234")


async def test_a_member_does_not_speak_to_a_server_that_is_none(fleet: Path) -> None:
    async with store_served() as address:
        identity.assume(fleet)
        async with Channels() as channels:
            with pytest.raises(EngineGone):
                await StoreClient(channels, address).prepare(checkpoint_id="tiny@abcd1234")


async def test_a_listener_that_others_reach_needs_certificates_or_a_word(fleet: Path) -> None:
    server = new_server()
    with pytest.raises(InvalidSettings, match="FIRSTLIGHT_RPC_TLS_DIR"):
        bind(server, bind_address="0.0.0.0", port=0)
    identity.assume(None, may_be_plain=True)
    bind(server, bind_address="0.0.0.0", port=0)
    identity.assume(fleet)
    bind(server, bind_address="0.0.0.0", port=0)
    await server.stop(grace=None)


def test_every_process_of_a_gpu_host_refuses_to_be_open_to_strangers(tmp_path: Path) -> None:
    """By the very command lines they are started with."""
    sizes = {"ssd_capacity_bytes": 1 << 20, "dram_capacity_bytes": 1 << 20}
    store = StoreConfig(host_id="a", state_dir=str(tmp_path / "store"), bind_address=OTHERS, **sizes)
    host = HostConfig(
        host_id="a", state_dir=str(tmp_path / "host"), bind_address=OTHERS, device="cpu", **sizes
    )
    for module, config in (("gpu_worker.store", store), ("gpu_worker.host", host)):
        done = subprocess.run(
            [sys.executable, "-m", module, "--config-json", config.to_json()],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2 and "FIRSTLIGHT_RPC_TLS_DIR" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"FIRSTLIGHT_HOST_BIND_ADDRESS": OTHERS}, "FIRSTLIGHT_RPC_TLS_DIR"),
        ({"FIRSTLIGHT_METRICS_PORT": "9464", "FIRSTLIGHT_METRICS_HOST": OTHERS}, "FIRSTLIGHT_API_KEYS"),
    ],
)
def test_a_gpu_host_says_at_once_what_would_be_open(
    given: dict[str, str], setting: str, tmp_path: Path
) -> None:
    """Not in the log of an agent that dies again and again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FIRSTLIGHT_")}
    environment |= {
        "FIRSTLIGHT_STATE_DIR": str(tmp_path),
        "FIRSTLIGHT_HOST_IDS": "host-a",
        "FIRSTLIGHT_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x",
        "FIRSTLIGHT_TEMPORAL_ADDRESS": "127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "firstlight.cli", "serve", "gpu-host"],
        env=environment | given,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (sentence,) = done.stderr.splitlines()
    assert done.returncode != 0 and setting in sentence


def test_the_files_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"ca\.pem"):
        identity.assume(tmp_path)


# Any: ASGI's messages.
async def hello(scope: Any, receive: Any, send: Any) -> None:
    """The smallest application."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"models": []}'})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    server = ApiServer(server_config(hello, settings))
    running = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started)
        yield f"https://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


def api_settings(folder: Path, **more: Any) -> Settings:
    return Settings(api_port=0, api_tls_cert=folder / "cert.pem", api_tls_key=folder / "key.pem", **more)


async def test_the_api_speaks_https_and_the_command_line_knows_its_authority(
    fleet: Path, strangers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(api_settings(fleet)) as url:
        monkeypatch.setenv("FIRSTLIGHT_API_CA", str(fleet / "ca.pem"))
        with ApiClient(url) as client:
            assert await asyncio.to_thread(client.get, "/admin/v1/models") == {"models": []}
        monkeypatch.setenv("FIRSTLIGHT_API_CA", str(strangers / "ca.pem"))
        with ApiClient(url) as client, pytest.raises(FirstlightError):
            await asyncio.to_thread(client.get, "/admin/v1/models")


async def test_the_api_may_ask_its_clients_for_certificates(fleet: Path) -> None:
    settings = api_settings(fleet, api_tls_client_ca=fleet / "ca.pem", api_ca=fleet / "ca.pem")
    async with serving(settings) as url:
        async with httpx.AsyncClient(verify=api_verification(settings), trust_env=False) as http:
            assert (await http.get(url)).status_code == 200
        without = ssl.create_default_context(cafile=fleet / "ca.pem")
        async with httpx.AsyncClient(verify=without, trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(url)


def test_a_certificate_that_is_none_is_told_before_the_port_is_opened(tmp_path: Path, fleet: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    with pytest.raises(InvalidSettings, match="no certificate with its key"):
        server_config(hello, Settings(api_tls_cert=tmp_path / "cert.pem"))
    with pytest.raises(InvalidSettings, match="FIRSTLIGHT_API_TLS_CERT"):
        server_config(hello, Settings(api_tls_key=fleet / "key.pem"))


@asynccontextmanager
async def behind_tls(address: str, folder: Path) -> AsyncIterator[str]:
    """`address`, for those who show a certificate of `folder`'s authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_temporal_is_shown_a_certificate(
    fleet: Path, strangers: Path, temporal_server: EmbeddedTemporal
) -> None:
    async with behind_tls(temporal_server.address, fleet) as address:

        def settings(folder: Path) -> Settings:
            return Settings(
                temporal_address=address,
                temporal_tls_server_root_ca=fleet / "ca.pem",
                temporal_tls_client_cert=folder / "cert.pem",
                temporal_tls_client_key=folder / "key.pem",
            )

        client = await connect_within(settings(fleet), within_s=10)
        assert await client.service_client.check_health()
        with pytest.raises(LaunchError):
            await connect_within(settings(strangers), within_s=0.5)
