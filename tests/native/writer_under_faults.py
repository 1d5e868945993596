"""Run by tests under the shim: one checkpoint written again and again, each time with a fault one call later.

Prints one JSON object a line. Every attempt is a fork, so that its death is its own.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from firstlight.domain.errors import DiskFull, FirstlightError, StorageError
from native_loader import CheckpointWriter, remove_leftovers, verify

WRITTEN, RAISED, BROKEN = 0, 3, 4
TENSORS = 6


def write_once(path: Path) -> None:
    with CheckpointWriter(
        path, source="test", revision="0", partition_count=2, chunk_bytes=4096, expected_bytes=20_000
    ) as writer:
        for index in range(TENSORS):
            writer.add_tensor(
                f"layers.{index}", bytes([index]) * 5000, dtype="U8", shape=[5000], partition=index % 2
            )
        writer.add_file("config.json", b"{}")
        writer.commit()


def attempt(shim: ctypes.CDLL, path: Path, *, at: int, error: int, log: int = -1) -> tuple[int, int]:
    """A fork that writes with a fault at the at-th call: how it ended, and how many calls it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = WRITTEN
        shim.fault_arm(at, error, log)
        try:
            write_once(path)
        except (DiskFull, StorageError):
            code = RAISED
        except FirstlightError:
            code = BROKEN
        calls = shim.fault_disarm()
        os.write(writer, str(calls).encode())
        os._exit(code)
    os.close(writer)
    said = os.read(reader, 20)
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return status, int(said or b"0")


def state_of(parent: Path, path: Path) -> str:
    """What is there afterwards: nothing, all, or something that must not be."""
    if not path.exists():
        return "nothing"
    try:
        verify(path)
    except FirstlightError as error:
        return f"broken: {error}"
    return "all"


def report(shim: ctypes.CDLL, parent: Path, *, at: int, error: int) -> None:
    path = parent / "deep" / "checkpoint"
    status, _ = attempt(shim, path, at=at, error=error)
    found = state_of(parent, path)
    before = names_in(parent / "deep")
    if (parent / "deep").exists():
        remove_leftovers(parent / "deep")
    after = names_in(parent / "deep")
    again, _ = attempt(shim, path, at=0, error=0)
    healed = state_of(parent, path) if again == 0 else f"status {again}"
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    outcome = (
        "killed" if killed else {0: "written", RAISED: "raised"}.get(os.WEXITSTATUS(status), "wrong error")
    )
    print(
        json.dumps(
            {"at": at, "outcome": outcome, "found": found, "left": before, "swept": after, "healed": healed}
        )
    )
    clear(parent)


def names_in(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


def clear(parent: Path) -> None:
    shutil.rmtree(parent / "deep", ignore_errors=True)


def sweep(shim: ctypes.CDLL, parent: Path, error: int) -> None:
    _, calls = attempt(shim, parent / "deep" / "checkpoint", at=0, error=0)
    clear(parent)
    for at in range(1, calls + 1):
        report(shim, parent, at=at, error=error)


def random_deaths(parent: Path, seed: int, count: int) -> None:
    """Killed from outside after a random part of the time that a whole run takes."""
    path, chance = parent / "deep" / "checkpoint", random.Random(seed)
    began = time.perf_counter()
    write_once(path)
    whole_s = time.perf_counter() - began
    clear(parent)
    for index in range(count):
        child = os.fork()
        if child == 0:
            write_once(path)
            os._exit(WRITTEN)
        time.sleep(chance.uniform(0, 1.5 * whole_s))  # the moment of death is the experiment
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = state_of(parent, path)
        if (parent / "deep").exists():
            remove_leftovers(parent / "deep")
        left = names_in(parent / "deep")
        print(json.dumps({"at": index, "found": found, "swept": left}))
        clear(parent)


def main() -> None:
    parent, what = Path(sys.argv[1]), sys.argv[2]
    if what == "random":
        random_deaths(parent, int(sys.argv[3]), int(sys.argv[4]))
        return
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    if what == "order":
        log = os.open(parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        status, _ = attempt(shim, parent / "deep" / "checkpoint", at=0, error=0, log=log)
        sys.exit(status)
    else:
        sweep(shim, parent, 0 if what == "kill" else getattr(errno, what))


if __name__ == "__main__":
    main()
