"""The SSD cache: exact accounts, eviction, what a crash leaves, quarantine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firstlight.domain.errors import Conflict, DiskFull, InvalidName, UnknownCheckpoint
from gpu_worker.store.ssd_cache import SsdCache

MANIFEST = b'{"digest": "d1"}'


def put(cache: SsdCache, checkpoint_id: str, size_bytes: int) -> None:
    """Publish a checkpoint of exactly `size_bytes`, manifest included."""
    with cache.reserving(checkpoint_id) as reserve:
        reserve(size_bytes)
        directory = cache.writing_dir(checkpoint_id)
        directory.mkdir()
        (directory / "manifest.json").write_bytes(MANIFEST)
        (directory / "partition-0.bin").write_bytes(b"x" * (size_bytes - len(MANIFEST)))
        cache.publish(checkpoint_id)


def opened(root: Path, capacity_bytes: int, may_evict: Callable[[str], bool] = lambda _: True) -> SsdCache:
    return SsdCache(root=root, capacity_bytes=capacity_bytes, may_evict=may_evict)


def ids(cache: SsdCache) -> set[str]:
    return {entry.checkpoint_id for entry in cache.checkpoints}


def test_accounts_are_exact_and_the_oldest_goes(tmp_path: Path) -> None:
    cache = opened(tmp_path, 3000)
    for name in ("a@aaaa", "b@aaaa", "c@aaaa"):
        put(cache, name, 1000)
    assert cache.used_bytes == 3000
    cache.touch("a@aaaa")
    put(cache, "d@aaaa", 900)
    assert ids(cache) == {"a@aaaa", "c@aaaa", "d@aaaa"} and cache.used_bytes == 2900
    assert not (tmp_path / "checkpoints" / "b@aaaa").exists()


def test_size_alone_condemns_nobody(tmp_path: Path) -> None:
    cache = opened(tmp_path, 3000)
    put(cache, "small@aaaa", 500)
    put(cache, "large@aaaa", 2500)
    put(cache, "new@aaaa", 400)
    assert ids(cache) == {"large@aaaa", "new@aaaa"}


def test_what_is_in_use_stays_and_the_disk_is_full(tmp_path: Path) -> None:
    cache = opened(tmp_path, 2000, may_evict=lambda name: name != "a@aaaa")
    put(cache, "a@aaaa", 1500)
    with cache.reserving("b@aaaa") as reserve, pytest.raises(DiskFull, match="lacks 500 bytes"):
        reserve(1000)
    assert cache.used_bytes == 1500 and ids(cache) == {"a@aaaa"}
    with pytest.raises(Conflict):
        cache.remove("a@aaaa")


def test_a_restart_finds_whole_ones_and_clears_the_rest(tmp_path: Path) -> None:
    cache = opened(tmp_path, 10_000)
    put(cache, "a@aaaa", 1000)
    put(cache, "b@aaaa", 1000)
    os.utime(tmp_path / "checkpoints" / "a@aaaa", (5e9, 5e9))
    (cache.writing_dir("c@aaaa")).mkdir()
    (tmp_path / "checkpoints" / "half@aaaa").mkdir()
    (cache.staging_dir("d@aaaa") / "part").write_bytes(b"y" * 8192)
    cache.close()

    again = opened(tmp_path, 10_000)
    assert ids(again) == {"a@aaaa", "b@aaaa"}
    assert not any((tmp_path / "writing").iterdir())
    assert again.used_bytes == 2000 + 8192
    with again.reserving("e@aaaa") as reserve:
        reserve(9000)
        # An abandoned fetch goes before any whole checkpoint; then the one used longest ago.
        assert ids(again) == {"a@aaaa"} and not (tmp_path / "staging" / "d@aaaa").exists()


def test_quarantine_takes_it_out_of_use(tmp_path: Path) -> None:
    cache = opened(tmp_path, 5000)
    put(cache, "a@aaaa", 1000)
    specimen = cache.quarantine("a@aaaa")
    assert (specimen / "manifest.json").exists() and cache.quarantined() == ("a@aaaa",)
    assert cache.used_bytes == 0
    with pytest.raises(UnknownCheckpoint):
        cache.get("a@aaaa")


def test_two_stores_never_share_a_directory(tmp_path: Path) -> None:
    cache = opened(tmp_path, 1000)
    with pytest.raises(Conflict):
        opened(tmp_path, 1000)
    cache.close()
    opened(tmp_path, 1000).close()


@pytest.mark.parametrize("name", ["../x@aaaa", "a", "a@../../x", "a/b@aaaa"])
def test_an_id_that_is_no_name_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidName):
        opened(tmp_path, 1000).writing_dir(name)
