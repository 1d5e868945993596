"""Kept and tied processes, with real ones: restarted, never orphaned, ended with their groups."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from firstlight.domain.errors import InvalidInput, StaleEpoch
from gpu_worker.host.backoff import FIRST_S, LONGEST_S, STABLE_S, Backoff
from gpu_worker.host.config import ChildConfig, HostConfig
from gpu_worker.host.fences import Fences
from gpu_worker.host.kept_process import KeptProcess
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.tied_process import start_tied
from tests.integration.store_processes import is_alive, until

FOREVER = (sys.executable, "-S", "-c", "import time; time.sleep(600)")
# A parent that ties a child to itself, says its pid, and waits.
TYING_PARENT = """
import asyncio, sys
from gpu_worker.store.tied_process import start_tied
async def main():
    child = await start_tied([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
# A child that starts a grandchild in its own group and ignores SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".new", "w") as f: f.write(str(grandchild.pid))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def has_pid(process: KeptProcess, *, other_than: int | None = None) -> Callable[[], bool]:
    return lambda: process.pid is not None and process.pid != other_than


async def test_a_tied_child_dies_with_a_killed_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TYING_PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    await parent.wait()
    await until(lambda: not is_alive(child), within_s=5, what="the child is gone")


async def test_a_kept_process_comes_back_and_a_stop_is_final() -> None:
    exits: list[None] = []
    kept = KeptProcess(name="x", argv=lambda: FOREVER, on_exit=lambda: exits.append(None))
    kept.start()
    await until(has_pid(kept), within_s=5, what="started")
    first = kept.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(has_pid(kept, other_than=first), within_s=5, what="started again")
    assert len(exits) == 1 and kept.restarts == 1
    second = kept.pid
    assert second is not None
    await kept.stop(grace_s=2)
    assert not is_alive(second) and kept.pid is None


async def test_a_stubborn_child_goes_with_what_it_started(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    kept = KeptProcess(name="x", argv=lambda: (sys.executable, "-S", "-c", STUBBORN, str(note)))
    kept.start()
    await until(note.exists, within_s=10, what="the grandchild runs")
    grandchild, child = int(note.read_text()), kept.pid
    assert child is not None
    await kept.stop(grace_s=0.2)
    assert not is_alive(child)
    await until(lambda: not is_alive(grandchild), within_s=5, what="the grandchild is gone")


async def test_a_child_gets_its_environment() -> None:
    program = (sys.executable, "-S", "-c", "import os; print(os.environ['FIRSTLIGHT_X'], end='')")
    child = await start_tied(program, env={"FIRSTLIGHT_X": "y"}, has_output=True)
    assert child.stdout is not None
    assert await child.stdout.read() == b"y" and await child.wait() == 0


def test_back_off_doubles_to_a_limit_and_forgets_after_a_long_life() -> None:
    backoff = Backoff()
    delays = [backoff.after(lived_s=0) for _ in range(12)]
    assert delays[0] == FIRST_S and delays[1] == 2 * FIRST_S and delays[-1] == LONGEST_S
    assert delays == sorted(delays)
    assert backoff.after(lived_s=STABLE_S) == FIRST_S


def test_fences_rise_only_and_outlive_a_restart(tmp_path: Path) -> None:
    fences = Fences(tmp_path / "epochs.json")
    fences.raise_to([0, 1], 5)
    fences.raise_to([0], 7)
    fences.raise_to([0], 7)
    again = Fences(tmp_path / "epochs.json")
    assert (again.highest(0), again.highest(1), again.highest(2)) == (7, 5, 0)
    with pytest.raises(StaleEpoch):
        again.raise_to([1, 0], 6)
    assert again.highest(1) == 5


def test_configs_travel_as_json(tmp_path: Path) -> None:
    config = HostConfig(
        host_id="host-a",
        state_dir=str(tmp_path),
        ssd_capacity_bytes=10,
        dram_capacity_bytes=20,
        children=(ChildConfig(name="agent", argv=("a", "b"), env={"X": "1"}),),
    )
    assert HostConfig.from_json(config.to_json()) == config
    store = config.store_config()
    assert StoreConfig.from_json(store.to_json()) == store


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ("{}", "lacks host_id"),
        ('{"hostid": 1}', "no field hostid"),
        ('{"host_id":"A!","state_dir":"x","ssd_capacity_bytes":1,"dram_capacity_bytes":1}', "host id"),
        (
            '{"host_id":"a","state_dir":"x","ssd_capacity_bytes":0,"dram_capacity_bytes":1}',
            "must be positive",
        ),
        (
            '{"host_id":"a","state_dir":"x","ssd_capacity_bytes":1,"dram_capacity_bytes":1,'
            '"children":[{"name":"x","argv":[]}]}',
            "empty argv",
        ),
    ],
)
def test_a_wrong_config_is_answered(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        HostConfig.from_json(text)


def test_a_long_state_dir_still_has_a_socket_path_that_fits() -> None:
    config = StoreConfig(
        host_id="a", state_dir="/tmp/" + "x" * 150, ssd_capacity_bytes=1, dram_capacity_bytes=1
    )
    assert len(str(config.socket_path)) < 100
    folder = config.socket_path.parent
    try:
        config.make_socket_dir()
        config.make_socket_dir()
        folder.chmod(0o755)
        with pytest.raises(InvalidInput, match="somebody else"):
            config.make_socket_dir()
    finally:
        folder.rmdir()
