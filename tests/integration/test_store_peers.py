"""Stores on loopback that give checkpoints to each other: real processes, real bytes, real kills."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from firstlight.domain.errors import ChecksumMismatch, Conflict, PeerUnreachable, SourceError
from firstlight.rpc.store_pb2 import DownloadProgress
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.probe import BOOT_ID
from gpu_worker.store.sources.peer import PeerClient
from tests.integration.store_checkpoints import put_checkpoint
from tests.integration.store_damage import flip_a_byte
from tests.integration.store_proxy import slow_proxy
from tests.integration.store_reader import Reader
from tests.integration.test_store_process import RunningStore, running_store

MIB = 2**20
NAME = "m@abcd1234"
SIZE = 48 * MIB
NOWHERE = "file:///nowhere/at/all"


def config_of(folder: Path, name: str, *, secret: str | None = None) -> StoreConfig:
    state = folder / name
    state.mkdir(exist_ok=True)
    # What the disk can do is not what is tested.
    (state / "ssd").mkdir(exist_ok=True)
    probe = {
        "boot_id": BOOT_ID.read_text().strip(),
        "device": os.stat(state / "ssd").st_dev,
        "ssd_read_bytes_per_s": 1e9,
        "dram_to_gpu_bytes_per_s": 0.0,
    }
    (state / "probe.json").write_text(json.dumps(probe))
    if secret is not None:
        (state / "secret").write_text(secret)
    return StoreConfig(
        host_id=name,
        state_dir=str(state),
        ssd_capacity_bytes=400 * MIB,
        dram_capacity_bytes=64 * MIB,
        arena_prefault=False,
        peer_secret_file=None if secret is None else str(state / "secret"),
    )


@asynccontextmanager
async def holder(folder: Path, name: str = "a", *, secret: str | None = None) -> AsyncIterator[RunningStore]:
    """A store that has the checkpoint on SSD."""
    config = config_of(folder, name, secret=secret)
    put_checkpoint(config.ssd_root, NAME, size_bytes=SIZE)
    async with running_store(config) as store:
        yield store


async def endpoint_of(store: RunningStore) -> str:
    return (await store.client.inventory()).peer_endpoint


def bytes_of(store: RunningStore) -> dict[str, bytes]:
    folder = store.config.ssd_root / "checkpoints" / NAME
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


async def fetch(
    store: RunningStore, peers: Sequence[str], *, source: str = NOWHERE
) -> list[DownloadProgress]:
    steps = store.client.download(
        checkpoint_id=NAME, source=source, dtype="float32", into_dram=True, peer_endpoints=peers
    )
    return [step async for step in steps]


@pytest.mark.parametrize("is_resident", [True, False])
async def test_a_checkpoint_comes_from_a_peer_byte_for_byte_into_both_tiers(
    tmp_path: Path, is_resident: bool
) -> None:
    async with holder(tmp_path) as giver, running_store(config_of(tmp_path, "b")) as taker:
        if is_resident:
            await giver.load(NAME)
        last = (await fetch(taker, [await endpoint_of(giver)]))[-1]
        assert last.came_from_peer and last.remote_bytes == last.dram_bytes == last.ssd_bytes > SIZE - MIB
        assert bytes_of(taker) == bytes_of(giver)
        assert (await taker.load(NAME)).from_tier == "dram"
        assert (await giver.row(NAME)).pins == 0, "what was lent was given back"


async def test_a_start_that_waits_for_the_bytes_says_they_came_from_a_peer(tmp_path: Path) -> None:
    async with (
        holder(tmp_path) as giver,
        slow_proxy(f"http://{await endpoint_of(giver)}", bytes_per_s=40e6) as link,
        running_store(config_of(tmp_path, "b")) as taker,
    ):
        await taker.client.prepare(
            checkpoint_id=NAME, source=NOWHERE, dtype="float32", peer_endpoints=[link.endpoint[7:]]
        )
        assert (await taker.load(NAME)).from_tier == "peer", "the load joins what the hint has begun"


async def test_a_peer_killed_midway_costs_its_chunks_nothing_and_another_finishes(tmp_path: Path) -> None:
    async with (
        holder(tmp_path) as first,
        holder(tmp_path, "c") as second,
        slow_proxy(f"http://{await endpoint_of(first)}", bytes_per_s=40e6) as link,
        running_store(config_of(tmp_path, "b")) as taker,
    ):
        steps = taker.client.download(
            checkpoint_id=NAME,
            source=NOWHERE,
            dtype="float32",
            into_dram=True,
            peer_endpoints=[link.endpoint[7:], await endpoint_of(second)],
        )
        async for last in steps:
            if last.ssd_bytes >= 16 * MIB and first.process.returncode is None:
                first.process.kill()
                await first.process.wait()
        assert last.came_from_peer and last.ssd_bytes > SIZE - MIB
        assert last.remote_bytes <= SIZE - 16 * MIB, "chunks that had come are not fetched again"
        assert bytes_of(taker) == bytes_of(second)


async def test_the_only_peer_killed_midway_leaves_the_source(tmp_path: Path) -> None:
    async with (
        holder(tmp_path) as giver,
        slow_proxy(f"http://{await endpoint_of(giver)}", bytes_per_s=40e6) as link,
        running_store(config_of(tmp_path, "b")) as taker,
    ):
        source = (giver.config.ssd_root / "checkpoints" / NAME).as_uri()
        running = asyncio.create_task(fetch(taker, [link.endpoint[7:]], source=source))
        while link.bytes_passed < 8 * MIB:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.01)
        giver.process.kill()
        last = (await running)[-1]
        assert not last.came_from_peer and bytes_of(taker) == bytes_of(giver)
        assert (await taker.load(NAME)).from_tier == "dram"


async def test_peers_that_are_away_lack_it_or_lie_are_passed_over(tmp_path: Path) -> None:
    async with (
        holder(tmp_path) as giver,
        running_store(config_of(tmp_path, "empty")) as empty,
        running_store(config_of(tmp_path, "b")) as taker,
    ):
        liar = await asyncio.start_server(_lie, "127.0.0.1", 0)
        lies = f"127.0.0.1:{liar.sockets[0].getsockname()[1]}"
        peers = ["127.0.0.1:9", await endpoint_of(empty), lies, await endpoint_of(giver)]
        assert (await fetch(taker, peers))[-1].came_from_peer
        assert bytes_of(taker) == bytes_of(giver)
        liar.close()


async def _lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}")
    writer.close()


async def until_quarantined(store: RunningStore) -> None:
    async with asyncio.timeout(30):
        while not (await store.row(NAME)).quarantined:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.02)


async def test_a_peer_whose_copy_is_damaged_hears_of_it_and_another_finishes(tmp_path: Path) -> None:
    async with (
        holder(tmp_path) as damaged,
        holder(tmp_path, "c") as sound,
        running_store(config_of(tmp_path, "b")) as taker,
    ):
        flip_a_byte(damaged.config.ssd_root / "checkpoints" / NAME / "partition-0.bin", at=-5000)
        last = (await fetch(taker, [await endpoint_of(damaged), await endpoint_of(sound)]))[-1]
        assert last.came_from_peer and bytes_of(taker) == bytes_of(sound)
        assert (await taker.load(NAME)).from_tier == "dram"
        await until_quarantined(damaged)
        assert not (await damaged.row(NAME)).on_ssd
        assert (await sound.row(NAME)).on_ssd and not (await sound.row(NAME)).quarantined


async def test_a_damaged_copy_among_peers_leaves_the_source_and_what_was_right_stays(tmp_path: Path) -> None:
    async with holder(tmp_path) as damaged, running_store(config_of(tmp_path, "b")) as taker:
        source = tmp_path / "source"
        shutil.copytree(damaged.config.ssd_root / "checkpoints" / NAME, source)
        flip_a_byte(damaged.config.ssd_root / "checkpoints" / NAME / "partition-0.bin", at=-5000)
        last = (await fetch(taker, [await endpoint_of(damaged)], source=source.as_uri()))[-1]
        assert not last.came_from_peer
        assert last.remote_bytes < last.ssd_bytes, "chunks that were right are not fetched again"
        assert bytes_of(taker) == {path.name: path.read_bytes() for path in sorted(source.iterdir())}
        await until_quarantined(damaged)


async def test_a_damaged_copy_of_ones_own_is_replaced_by_a_peers(tmp_path: Path) -> None:
    async with holder(tmp_path) as giver, holder(tmp_path, "b") as taker:
        flip_a_byte(taker.config.ssd_root / "checkpoints" / NAME / "partition-0.bin", at=-5000)
        with pytest.raises(ChecksumMismatch, match="quarantined"):
            await taker.load(NAME)
        assert (await taker.row(NAME)).quarantined
        assert (await fetch(taker, [await endpoint_of(giver)]))[-1].came_from_peer
        assert bytes_of(taker) == bytes_of(giver) and (await taker.load(NAME)).from_tier == "dram"
        assert not (await taker.row(NAME)).quarantined


async def test_a_store_that_is_doubted_looks_for_itself(tmp_path: Path) -> None:
    """In DRAM it is right, on SSD it is not: readers keep the one and nobody gets the other."""
    async with holder(tmp_path) as giver:
        client = PeerClient(secret=None)
        peer = client.open(await endpoint_of(giver), NAME)
        await giver.load(NAME)
        reader = await asyncio.to_thread(Reader, str(giver.config.socket_path))
        flip_a_byte(giver.config.ssd_root / "checkpoints" / NAME / "partition-0.bin", at=5000)
        await peer.doubt()
        await until_quarantined(giver)
        with pytest.raises(PeerUnreachable, match="404"):
            await peer.describe()
        assert (await asyncio.to_thread(reader.ask, pin=NAME))["pinned"] == NAME
        assert (await giver.client.get_files(NAME)).files
        reader.close()
        client.close()


async def test_a_wrong_secret_is_refused_and_a_right_one_serves_any_http_client(tmp_path: Path) -> None:
    secret = "correct horse"
    async with holder(tmp_path, secret=secret) as giver:
        endpoint = await endpoint_of(giver)
        for wrong in (None, "wrong", secret[:-1]):
            client = PeerClient(secret=wrong)
            with pytest.raises(PeerUnreachable, match="401"):
                await client.open(endpoint, NAME).describe()
            client.close()
        async with running_store(config_of(tmp_path, "b", secret="wrong")) as taker:
            with pytest.raises(SourceError):
                await fetch(taker, [endpoint])
        headers = {"Authorization": f"Bearer {secret}"}
        url = f"http://{endpoint}/v1/checkpoints/{NAME}"
        async with httpx.AsyncClient(headers=headers, trust_env=False) as web:
            listing = (await web.get(url)).json()
            part = await web.get(f"{url}/partition-0.bin", headers={"Range": "bytes=4096-8191"})
            assert part.status_code == 206
            assert part.content == bytes_of(giver)["partition-0.bin"][4096:8192]
            stale = await web.get(f"{url}/partition-0.bin", headers={"If-Match": '"another"'})
            assert stale.status_code == 412
            assert {row["name"] for row in listing["files"]} == set(bytes_of(giver))
            for absent in ("partition-7.bin", "%2e%2e", "lock", ".."):
                assert (await web.get(f"{url}/{absent}")).status_code == 404


async def test_what_is_being_given_stays_until_the_peer_has_gone(tmp_path: Path) -> None:
    async with holder(tmp_path) as giver:
        await giver.load(NAME)
        host, _, port = (await endpoint_of(giver)).rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=MIB)
        writer.write(f"GET /v1/checkpoints/{NAME}/partition-0.bin HTTP/1.1\r\n\r\n".encode())
        # It takes the head and no more: the rest stands in the sender's way.
        await reader.readuntil(b"\r\n\r\n")
        await giver.until_pins(NAME, 1)
        with pytest.raises(Conflict):
            await giver.client.remove(NAME, only_dram=True)
        writer.transport.abort()
        await giver.until_pins(NAME, 0)
        assert (await giver.client.remove(NAME, only_dram=True)).freed_dram_bytes > 0
