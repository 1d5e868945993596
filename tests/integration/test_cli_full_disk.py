"""A disk that is really full: a small file system of the test's own, filled to its last byte."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstlight.domain.errors import DiskFull
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from tests.integration.installation import Installation, until
from tests.platform_fixtures import tiny_source

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a tmpfs with these options; skips where mounting is refused."""
    mounted: list[Path] = []

    def made(options: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"this account may not mount a tmpfs: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield made
    for folder in mounted:
        # Lazily: what a failed test has left running must not keep the next one from its disk.
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, *, but_bytes: int = 0) -> Path:
    """A file that takes all the room there is, less `but_bytes`."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - but_bytes)
    return filler


@pytest.mark.parametrize("options", ["size=400m,nr_inodes=300", "size=400m,nr_inodes=1300"])
def test_postgres_on_a_full_disk_leaves_nothing_and_starts_once_there_is_room(
    mount: Mount, options: str
) -> None:
    """Few inodes are as full a disk as few bytes, at another point: in initdb, or while it serves."""
    disk = mount(options)
    server = EmbeddedPostgres(disk / "state")
    try:
        with pytest.raises(DiskFull, match="make room, or set FIRSTLIGHT_STATE_DIR"):
            server.start()
        assert not (disk / "state" / "postgres" / "data.new").exists()
        subprocess.run(["mount", "-o", "remount,nr_inodes=100000", str(disk)], check=True)
        assert server.start().startswith("postgresql+psycopg://")
    finally:
        server.stop()


@pytest.mark.slow
def test_a_full_disk_is_said_once_and_everything_goes_on_when_there_is_room(
    mount: Mount, tmp_path: Path
) -> None:
    disk = mount("size=500m")
    here = Installation(disk / "state")
    here.env["FIRSTLIGHT_HOST_IDS"] = "host-a"
    # What Temporal has taken and cannot go on with is waited for no longer than this.
    here.env["FIRSTLIGHT_START_TIMEOUT_S"] = "45"
    # A state directory that was used before needs no room for a first model.
    (disk / "state" / "hosts").mkdir(parents=True)
    filler = fill(disk)
    refused = here.run("up")
    assert refused.returncode == 1
    (sentence,) = refused.stderr.splitlines()
    assert "make room, or set FIRSTLIGHT_STATE_DIR to another disk" in sentence
    filler.unlink()

    source = str(tiny_source(tmp_path / "tiny", width=24_000))
    with here.up():
        assert here.run("deploy", "tiny", source).returncode == 0
        # Postgres and Temporal can still tell what happens, wherever in their logs they are (a segment of
        # Postgres' is 16 MiB, SQLite's grows to 4); the checkpoint, of 37 MB, finds no room.
        filler = fill(disk, but_bytes=24 << 20)
        failed = here.run("chat", "tiny", "Hello", "--max-tokens", "2", timeout_s=120)
        assert failed.returncode == 1
        (sentence,) = failed.stderr.splitlines()
        assert "No space left on device" in sentence
        ssd = disk / "state" / "hosts" / "host-a" / "ssd"
        left = [path for name in ("writing", "staging", "checkpoints") for path in (ssd / name).rglob("*")]
        assert [path for path in left if path.is_file()] == []

        # Now nobody can write a byte, Postgres and Temporal neither.
        rest = disk / "rest"
        rest.write_bytes(b"")
        fill_rest(rest)
        assert here.run("chat", "tiny", "Hello", "--max-tokens", "2", timeout_s=150).returncode == 1
        rest.unlink()
        filler.unlink()
        until(lambda: here.run("chat", "tiny", "Hello", "--max-tokens", "2").returncode == 0)
        stopped = here.run("down", timeout_s=90)
        assert stopped.stdout == "stopped\n"


def fill_rest(file: Path) -> None:
    with file.open("wb", buffering=0) as output:
        try:
            while True:
                output.write(bytes(4096))
        except OSError:
            return
