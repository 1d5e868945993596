"""Writing checkpoints: all or nothing, whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from firstlight.domain.errors import CheckpointMismatch, DiskFull, InvalidInput, ManifestInvalid
from native_loader import (
    CheckpointWriter,
    StorageMember,
    load_state_dict,
    remove_leftovers,
    save_checkpoint,
    verify,
)


def writer_at(path: Path) -> CheckpointWriter:
    return CheckpointWriter(path, source="test", revision="0000", chunk_bytes=1 << 20)


def test_nothing_is_there_before_commit_and_all_of_it_after(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "checkpoint"
    with writer_at(path) as writer:
        writer.add_tensor("a", torch.arange(10))
        writer.add_file("config.json", b"{}")
        assert not path.exists()
        manifest = writer.commit()
    assert sorted(os.listdir(path)) == ["config.json", "manifest.json", "partition-0.bin"]
    assert os.listdir(path.parent) == ["checkpoint"]
    assert manifest.dtype == "I64"
    verify(path)


def test_an_exception_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writer_at(tmp_path / "checkpoint") as writer:
        writer.add_tensor("a", torch.arange(10))
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_partitions_hold_what_was_put_into_them(tmp_path: Path) -> None:
    whole = torch.arange(64, dtype=torch.float32).reshape(8, 8)
    with CheckpointWriter(tmp_path / "c", source="test", revision="0000", partition_count=2) as writer:
        for rank in range(2):
            writer.add_tensor(f"w.{rank}", whole[:, rank * 4 : rank * 4 + 4].contiguous(), partition=rank)
        manifest = writer.commit()
    assert [p.name for p in manifest.partitions] == ["partition-0.bin", "partition-1.bin"]
    loaded = load_state_dict(tmp_path / "c")
    assert torch.equal(torch.cat([loaded["w.0"], loaded["w.1"]], dim=1), whole)


def test_the_same_again_is_success_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    first = save_checkpoint({"a": torch.ones(4)}, path)
    assert save_checkpoint({"a": torch.ones(4)}, path).digest == first.digest
    with pytest.raises(CheckpointMismatch):
        save_checkpoint({"a": torch.zeros(4)}, path)
    assert torch.equal(load_state_dict(path)["a"], torch.ones(4))
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize(
    ("dtype", "shape", "stride", "size_bytes"),
    [
        ("F32", [4], None, 15),
        ("F32", [4], [2], 16),
        ("F32", [4], [1, 1], 16),
        ("F128", [4], None, 64),
        ("F4", [3], None, 2),
        (None, [4], None, 16),
        ("F32", None, None, 16),
    ],
)
def test_bytes_that_do_not_fit_their_shape_are_refused(
    tmp_path: Path, dtype: str | None, shape: list[int] | None, stride: list[int] | None, size_bytes: int
) -> None:
    with writer_at(tmp_path / "c") as writer, pytest.raises(InvalidInput):
        writer.add_tensor("a", bytes(size_bytes), dtype=dtype, shape=shape, stride=stride)


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    whole = torch.arange(1000, dtype=torch.int32)
    content = whole.numpy().tobytes()
    with writer_at(tmp_path / "c") as writer:
        writer.add_pieces(
            "a", (content[at : at + 7] for at in range(0, 4000, 7)), dtype="I32", shape=[10, 100]
        )
        writer.add_pieces("none", [], dtype="I32", shape=[0])
        writer.commit()
    assert torch.equal(load_state_dict(tmp_path / "c")["a"], whole.reshape(10, 100))
    for pieces in ([], [content, b"x"], [content[:-1]]):
        with writer_at(tmp_path / "d") as writer, pytest.raises(InvalidInput):
            writer.add_pieces("a", pieces, dtype="I32", shape=[1000])
    assert os.listdir(tmp_path) == ["c"]


def test_views_of_given_bytes_share_them(tmp_path: Path) -> None:
    with writer_at(tmp_path / "c") as writer:
        rows = StorageMember("rows", 0, "I32", (2, 3), (3, 1))
        columns = StorageMember("columns", 4, "I32", (2,), (3,))
        writer.add_storage(torch.arange(6, dtype=torch.int32).numpy().tobytes(), [rows, columns])
        writer.commit()
    loaded = load_state_dict(tmp_path / "c")
    loaded["rows"][1, 1] = 40
    assert loaded["columns"].tolist() == [1, 40]


def test_lies_are_found_at_commit(tmp_path: Path) -> None:
    for add in (
        lambda w: w.add_tensor("a", torch.ones(1)),
        lambda w: w.add_alias("tied", "nothing"),
        lambda w: w.add_alias("a", "a"),
    ):
        with writer_at(tmp_path / "c") as writer:
            writer.add_tensor("a", torch.ones(1))
            add(writer)
            with pytest.raises(ManifestInvalid):
                writer.commit()
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["../x", "/x", "", ".hidden", "a/b", "a\0b"])
def test_file_names_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    with writer_at(tmp_path / "c") as writer, pytest.raises(InvalidInput):
        writer.add_file(name, b"")


WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from native_loader import CheckpointWriter
writer = CheckpointWriter(Path(sys.argv[1]), source="test", revision="0000")
writer.add_tensor("a", bytes(5 << 20), dtype="U8", shape=[5 << 20])
print("written", flush=True)
sys.stdin.read()
"""


def start_writer(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    return process


def test_leftovers_of_the_killed_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    living, killed = start_writer(tmp_path / "one"), start_writer(tmp_path / "two")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert not (tmp_path / "two").exists()
        assert [path.name.split(".partial-")[0] for path in remove_leftovers(tmp_path)] == [".two"]
        assert [name.split(".partial-")[0] for name in os.listdir(tmp_path)] == [".one"]
        assert remove_leftovers(tmp_path) == []
    finally:
        for process in (living, killed):
            process.kill()
            process.communicate(timeout=10)
    assert len(remove_leftovers(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_several_writers_of_one_checkpoint_all_succeed(tmp_path: Path) -> None:
    state = {f"layers.{index}": torch.full((1000,), float(index)) for index in range(20)}
    with ThreadPoolExecutor(6) as pool:
        manifests = list(pool.map(lambda _: save_checkpoint(state, tmp_path / "c"), range(6)))
    assert len({manifest.digest for manifest in manifests}) == 1
    assert os.listdir(tmp_path) == ["c"]
    verify(tmp_path / "c")


WRITE_ONE_OF_TWO = """
import sys
from pathlib import Path
from firstlight.domain.errors import CheckpointMismatch
from native_loader import CheckpointWriter
sys.stdin.readline()
try:
    with CheckpointWriter(Path(sys.argv[1]), source="test", revision="0") as writer:
        for index in range(20):
            content = sys.argv[2].encode() * 100_000
            writer.add_tensor(f"layers.{index}", content, dtype="U8", shape=[len(content)])
        writer.commit()
    print("written")
except CheckpointMismatch:
    print("mismatch")
"""


def test_of_two_different_checkpoints_at_one_place_one_is_there_whole(tmp_path: Path) -> None:
    """Two processes for each of two contents, let go at once."""
    contents = ["a", "b", "a", "b"]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE_ONE_OF_TWO, str(tmp_path / "c"), content],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for content in contents
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    said = [writer.communicate(timeout=60)[0].strip() for writer in writers]
    verify(tmp_path / "c")
    winner = chr(int(load_state_dict(tmp_path / "c")["layers.19"][99_999]))
    assert said == ["written" if content == winner else "mismatch" for content in contents]
    assert os.listdir(tmp_path) == ["c"]


def test_a_sweep_takes_nothing_from_writers_at_work(tmp_path: Path) -> None:
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            remove_leftovers(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for index in range(60):
            save_checkpoint({"a": torch.full((10,), float(index))}, tmp_path / f"c{index}")
    finally:
        done.set()
        sweeper.join()
    for index in range(60):
        assert load_state_dict(tmp_path / f"c{index}")["a"][0] == index
    assert len(os.listdir(tmp_path)) == 60


FILL_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from firstlight.domain.errors import DiskFull
from native_loader import CheckpointWriter
parent = Path(sys.argv[1])
for expected_bytes, kept in ((0, False), (8 << 20, False), (0, True)):
    try:
        with CheckpointWriter(
            parent / "c", source="test", revision="0000", expected_bytes=expected_bytes
        ) as writer:
            if kept:
                writer.add_file("tokenizer.json", bytes(8 << 20))
            writer.add_tensor("a", bytes(8 << 20), dtype="U8", shape=[8 << 20])
            writer.commit()
        sys.exit("it was not full")
    except DiskFull as error:
        assert "No space left" in str(error), error
    assert os.listdir(parent) == [], os.listdir(parent)
print("full")
"""


def test_a_full_disk_is_said_and_cleaned_up(tmp_path: Path) -> None:
    """A file system of 4 MiB of its own, in a mount namespace that ends with the process."""
    script = (
        f'mount -t tmpfs -o size=4m tmpfs "{tmp_path}" && exec "{sys.executable}" -c "$PROGRAM" "{tmp_path}"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", script],
        env=dict(os.environ, PROGRAM=FILL_A_SMALL_DISK),
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    assert done.stdout == "full\n", done.stderr


def test_a_file_size_limit_is_disk_full_too(tmp_path: Path) -> None:
    program = """
import resource, signal, sys
from pathlib import Path
from firstlight.domain.errors import DiskFull
from native_loader import CheckpointWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with CheckpointWriter(Path(sys.argv[1]), source="test", revision="0000") as writer:
        writer.add_tensor("a", bytes(2 << 20), dtype="U8", shape=[2 << 20])
        writer.commit()
except DiskFull:
    print("full")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "c")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "full\n", done.stderr
    assert os.listdir(tmp_path) == []
    assert DiskFull.code == "disk_full"
