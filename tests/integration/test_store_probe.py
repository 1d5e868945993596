"""The probe of a host's devices: direct, once a boot and volume, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fleets import add_host

from firstlight.database.connection import Database
from firstlight.database.host_listing import list_hosts
from firstlight.domain.fleet import Edge
from firstlight.launcher.placement_mirror import PlacementMirror
from gpu_worker.store import probe, ssd_probe
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.gpu_handover import GpuHandover
from gpu_worker.store.gpu_probe import COPY_BYTES, measure_copy
from gpu_worker.store.probe import Figures, Prober
from gpu_worker.store.ssd_probe import Disturbed, Reads, measure_reads
from native_loader import CudaDriver
from tests.integration.store_processes import until
from tests.integration.test_store_process import running_store
from tests.native.cuda_standin.standin import library

MIB = 2**20


def always() -> bool:
    return True


def no_gpu() -> GpuHandover:
    return GpuHandover(devices=None, copies=None)


def prober(folder: Path, *, again_after_s: float = 0.0) -> Prober:
    (folder / "ssd").mkdir(exist_ok=True)
    return Prober(ssd_root=folder / "ssd", state_dir=folder, quiet_for_s=0.0, again_after_s=again_after_s)


def test_a_volume_is_read_past_the_cache_and_left_as_it_was(tmp_path: Path) -> None:
    found = measure_reads(tmp_path, is_quiet=always)
    assert found.bytes_per_s > 1e6 and 1 <= found.passes <= ssd_probe.PASSES
    assert 8 * MIB <= found.size_bytes <= 128 * MIB
    assert found.io_mode == "direct" or not refuses_direct(tmp_path)
    assert list(tmp_path.iterdir()) == []


def refuses_direct(folder: Path) -> bool:
    path = folder / "direct"
    path.touch()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return True
    finally:
        path.unlink()
    return False


def test_a_load_that_comes_ends_the_probe_at_once(tmp_path: Path) -> None:
    answers = iter([True, True, False])
    with pytest.raises(Disturbed):
        measure_reads(tmp_path, is_quiet=lambda: next(answers))
    assert list(tmp_path.iterdir()) == []


async def test_it_measures_once_a_boot_and_volume(tmp_path: Path) -> None:
    first = prober(tmp_path)
    assert first.figures == Figures() and not first.is_fresh
    await first.run(is_quiet=always, gpu=no_gpu())
    measured = first.figures
    assert measured.ssd_read_bytes_per_s > 0 and measured.dram_to_gpu_bytes_per_s == 0
    again = prober(tmp_path)
    assert again.is_fresh and again.figures == measured
    record = json.loads((tmp_path / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps({**record, "boot_id": "another"}))
    after_boot = prober(tmp_path)
    # They serve until there are new ones.
    assert after_boot.figures == measured and not after_boot.is_fresh
    (tmp_path / "probe.json").write_text(json.dumps({**record, "device": -1}))
    assert prober(tmp_path).figures == Figures(), "another volume"


async def test_the_better_of_two_counts_and_until_the_second_a_successor_measures_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mostly the first is slow, beside all that starts with it; here the second is, then the first."""
    rates = iter([3e9, 1e9, 0.5e9])

    def measured(folder: Path, *, is_quiet: Callable[[], bool]) -> Reads:
        return Reads(bytes_per_s=next(rates), io_mode="direct", size_bytes=1, passes=1, took_s=0.0)

    monkeypatch.setattr(probe, "measure_reads", measured)
    waiting = prober(tmp_path, again_after_s=60.0)
    running = asyncio.create_task(waiting.run(is_quiet=always, gpu=no_gpu()))
    await until((tmp_path / "probe.json").exists, within_s=10, what="the first figure is kept")
    assert waiting.figures.ssd_read_bytes_per_s == 3e9 and not waiting.is_fresh
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    successor = prober(tmp_path)
    assert successor.figures.ssd_read_bytes_per_s == 3e9 and not successor.is_fresh
    await successor.run(is_quiet=always, gpu=no_gpu())
    # Of its own two; what it was left serves no longer.
    assert successor.figures.ssd_read_bytes_per_s == 1e9 and successor.is_fresh
    (tmp_path / "probe.json").unlink()
    rates = iter([1e9, 2e9])
    another = prober(tmp_path)
    await another.run(is_quiet=always, gpu=no_gpu())
    assert another.figures.ssd_read_bytes_per_s == 2e9 and prober(tmp_path).is_fresh


async def test_it_waits_until_nothing_is_loaded(tmp_path: Path) -> None:
    asked = 0

    def is_quiet() -> bool:
        nonlocal asked
        asked += 1
        # Busy, then quiet, then a load comes in the midst; then it is quiet for good.
        return asked not in (1, 4)

    probing = prober(tmp_path)
    await probing.run(is_quiet=is_quiet, gpu=no_gpu())
    assert asked > 6 and probing.is_fresh and probing.figures.ssd_read_bytes_per_s > 0


async def test_a_volume_that_refuses_leaves_the_store_serving_with_a_guess(tmp_path: Path) -> None:
    probing = prober(tmp_path)
    (tmp_path / "ssd").rmdir()
    await probing.run(is_quiet=always, gpu=no_gpu())
    assert probing.figures == Figures() and not probing.is_fresh
    assert not (tmp_path / "probe.json").exists()


def test_copies_to_a_gpu_are_measured_on_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_CUDA_DELAY_US", "1000")
    device = CudaDriver(library()).open(0)
    free = device.free_bytes
    bytes_per_s = measure_copy(device)
    # The stand-in takes its time for every piece.
    assert 0 < bytes_per_s < COPY_BYTES / 1e-3
    assert device.free_bytes == free


async def test_a_store_serves_before_it_has_measured_and_the_fleet_hears_when_it_has(
    database: Database, tmp_path: Path
) -> None:
    await add_host(database, "host-t", ssd_read=0.0)
    config = StoreConfig(
        host_id="host-t",
        state_dir=str(tmp_path),
        ssd_capacity_bytes=300 * MIB,
        dram_capacity_bytes=12 * MIB,
        arena_prefault=False,
    )
    async with running_store(config) as store:
        first = await store.client.inventory()
        assert first.ssd_read_bytes_per_s == 0.0, "nothing waits for it"
        kept = tmp_path / "probe.json"
        mirror = PlacementMirror("host-t", store.client, database, is_member=lambda: True)
        mirroring = asyncio.create_task(mirror.keep())
        try:
            await until(kept.exists, within_s=60, what="the figures are kept")
            inventory = await store.client.inventory()
            assert inventory.ssd_read_bytes_per_s > 1e6 and inventory.dram_to_gpu_bytes_per_s == 0.0
            async with asyncio.timeout(30):
                while (await edge_of(database)) != inventory.ssd_read_bytes_per_s:  # noqa: ASYNC110 - SQL
                    await asyncio.sleep(0.1)
        finally:
            mirroring.cancel()
            await asyncio.gather(mirroring, return_exceptions=True)
    async with running_store(config) as store:
        again = await asyncio.wait_for(store.client.inventory(), 10)
        assert again.ssd_read_bytes_per_s == inventory.ssd_read_bytes_per_s


async def edge_of(database: Database) -> float:
    """What estimates of loads from SSD start from."""
    async with database.session() as session:
        [host] = await list_hosts(session)
    return host.edges[Edge.SSD_TO_DRAM].bandwidth_bytes_per_s
