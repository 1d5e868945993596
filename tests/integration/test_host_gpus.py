"""What a host says of its GPUs, asked of a stand-in of the CUDA driver."""

from __future__ import annotations

import pytest

from firstlight.domain.errors import GpuUnavailable, InvalidSettings
from gpu_worker.host.devices import device_of, devices, gpus_of_host
from tests.native.cuda_standin.standin import library


async def test_gpus_are_described_by_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_CUDA_MEMORY_MIB", "143771")
    found = await gpus_of_host("cuda", gpu_count=2, library=library())
    assert [gpu.index for gpu in found] == [0, 1]
    assert found[0].name == "Stand-in GPU 0 (host memory)"
    assert found[0].memory_bytes == 143771 << 20
    assert found[0].uuid != found[1].uuid
    assert len(await gpus_of_host("cuda", gpu_count=1, library=library())) == 1


async def test_a_host_on_the_cpu_asks_nobody() -> None:
    assert await gpus_of_host("cpu", gpu_count=4, library="/nowhere/libcuda.so.1") == ()
    assert devices("cpu", 4) == ("cpu",)
    assert devices("cuda", 2) == ("cuda:0", device_of("cuda", 1))


async def test_fewer_gpus_than_promised_is_a_setting_to_correct() -> None:
    with pytest.raises(InvalidSettings, match="gpu_count is 3, but the driver shows 2 GPUs"):
        await gpus_of_host("cuda", gpu_count=3, library=library())


@pytest.mark.parametrize("is_missing", [True, False])
async def test_a_driver_that_does_not_start_is_named(
    monkeypatch: pytest.MonkeyPatch, is_missing: bool
) -> None:
    monkeypatch.setenv("STANDIN_CUDA_FAIL", "cuInit:0:800:1")
    where = "/nowhere/libcuda.so.1" if is_missing else library()
    expected = "/nowhere/libcuda.so.1: cannot open" if is_missing else "CUDA_ERROR_NOT_PERMITTED"
    with pytest.raises(GpuUnavailable, match=expected):
        await gpus_of_host("cuda", gpu_count=1, library=where)
