"""Folders that somebody hostile, or a bad disk, could put where a checkpoint is expected.

Each case builds its folder from nothing and says the error it must be answered with.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native_loader import crc32c
from native_loader.manifest import seal

Record = dict[str, Any]  # a manifest before it is believed
SIZE = 8192
TIB = 1 << 40


@dataclass(frozen=True, slots=True)
class Case:
    """`rule` is set where the error is a ManifestInvalid."""

    name: str
    build: Callable[[Path], None]
    code: str
    rule: str | None = None


def record_of(content: bytes) -> Record:
    """A manifest without fault, for one partition of these bytes."""
    return {
        "format_version": 1,
        "source": "test",
        "revision": "0",
        "dtype": "U8",
        "transformers_version": None,
        "chunk_bytes": 4096,
        "partitions": [partition(content)],
        "tensors": [tensor("a", 0, 4096), tensor("b", 4096, 4000)],
        "aliases": {"tied": "a"},
        "files": [{"name": "config.json", "size_bytes": 2, "sha256": CONFIG_SHA256}],
    }


CONFIG_SHA256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of b"{}"


def partition(content: bytes) -> Record:
    sums = [crc32c(content[at : at + 4096]) for at in range(0, len(content), 4096)]
    return {"name": "partition-0.bin", "size_bytes": len(content), "chunk_crc32c": sums}


def tensor(name: str, offset: int, size_bytes: int, **changes: Any) -> Record:
    place = {"name": name, "partition": 0, "offset": offset, "size_bytes": size_bytes, "dtype": "U8"}
    return {**place, "shape": [size_bytes], "stride": [1], **changes}


def text_of(record: Record) -> bytes:
    return seal(json.dumps(record, separators=(",", ":")).encode().removesuffix(b"}"))


def write_folder(path: Path, change: Callable[[Record], None] = lambda record: None) -> None:
    """The faultless folder, its manifest changed and sealed again."""
    content = bytes(range(256)) * 16 + bytes(range(250)) * 16 + bytes(96)
    record = record_of(content)
    change(record)
    path.mkdir()
    (path / "partition-0.bin").write_bytes(content)
    (path / "config.json").write_bytes(b"{}")
    (path / "manifest.json").write_bytes(text_of(record))


def lie(name: str, rule: str, change: Callable[[Record], None]) -> Case:
    return Case(name, lambda path: write_folder(path, change), "manifest_invalid", rule)


def text(name: str, rule: str, change: Callable[[bytes], bytes]) -> Case:
    """A manifest whose text is spoilt after it was sealed."""

    def build(path: Path) -> None:
        write_folder(path)
        location = path / "manifest.json"
        location.write_bytes(change(location.read_bytes()))

    return Case(name, build, "manifest_invalid", rule)


def files(
    name: str, change: Callable[[Path], None], code: str = "manifest_invalid", rule: str | None = None
) -> Case:
    """A faultless manifest beside files that are not what it says."""

    def build(path: Path) -> None:
        write_folder(path)
        change(path)

    return Case(name, build, code, rule)


def put(*way: str | int, value: object) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        at: Any = record
        for step in way[:-1]:
            at = at[step]
        at[way[-1]] = value

    return change


def replace_file(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return change


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def real_link(path: Path) -> None:
    """To the very bytes that belong there, elsewhere."""
    elsewhere = path.with_name(f"elsewhere-{path.name}")
    elsewhere.write_bytes(b"{}" if path.suffix == ".json" else bytes(SIZE))
    path.symlink_to(elsewhere)


def unix_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def sparse(size_bytes: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size_bytes)

    return make


def cut(name: str, size_bytes: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path / name, size_bytes)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def endless_zeros(path: Path) -> None:
    """A manifest that tells the truth, checksums too, about a partition larger than any memory."""
    size_bytes, chunk_bytes = 4 * TIB, 1 << 30
    zeros = crc32c(bytes(1 << 20))
    for _ in range(1023):
        zeros = crc32c(bytes(1 << 20), zeros)
    path.mkdir()
    sparse(size_bytes)(path / "partition-0.bin")
    record = record_of(b"") | {
        "chunk_bytes": chunk_bytes,
        "tensors": [tensor("a", 0, size_bytes)],
        "aliases": {},
        "files": [],
        "partitions": [
            {
                "name": "partition-0.bin",
                "size_bytes": size_bytes,
                "chunk_crc32c": [zeros] * (size_bytes // chunk_bytes),
            }
        ],
    }
    (path / "manifest.json").write_bytes(text_of(record))


def many_names_twice(path: Path) -> None:
    """An object of 300,000 keys, the last of which stands twice."""
    pairs = ",".join(f'"k{index}":0' for index in range(300_000)) + ',"k299999":0'
    path.mkdir()
    (path / "manifest.json").write_text("{" + pairs + "}")


def only(name: str, content: bytes) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        (path / name).write_bytes(content)

    return build


LARGEST = 2**63 - 1
PICKLE = b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94."
LIES = [
    lie("another version", "bad_version", put("format_version", value=2)),
    lie("an overlap", "overlap", put("tensors", 1, value=tensor("b", 3840, 4000))),
    lie("a gap", "gap", put("tensors", 1, value=tensor("b", 4352, 3800))),
    lie("bytes no tensor has", "gap", lambda record: record["tensors"].pop()),
    lie("out of the file", "out_of_file", put("tensors", 1, value=tensor("b", 8192, 4000))),
    lie("in no partition", "out_of_file", put("tensors", 1, "partition", value=1)),
    lie("offset of 2^63", "overflow", put("tensors", 1, "offset", value=2**63)),
    lie("offset of 2^63 - 1", "overflow", put("tensors", 1, "offset", value=LARGEST)),
    lie("size of 2^63 - 1", "overflow", put("tensors", 1, value=tensor("b", 4096, LARGEST))),
    lie("partition of 2^63 - 1", "bad_chunks", put("partitions", 0, "size_bytes", value=LARGEST)),
    lie("partition of 2^64", "overflow", put("partitions", 0, "size_bytes", value=2**64)),
    lie("negative offset", "negative", put("tensors", 0, "offset", value=-1)),
    lie("negative shape", "negative", put("tensors", 0, "shape", value=[-4096])),
    lie("a number of 4000 digits", "overflow", put("tensors", 0, "offset", value=10**3999)),
    lie("a shape whose product has a million digits", "overflow",
        put("tensors", 0, value=tensor("a", 0, 4096, shape=[2**62] * 20_000, stride=[1] * 20_000))),
    lie("a boolean offset", "malformed", put("tensors", 0, "offset", value=False)),
    lie("a fraction", "malformed", put("tensors", 0, "offset", value=0.5)),
    lie("a number in a string", "malformed", put("tensors", 0, "offset", value="0")),
    lie("bytes that contradict the shape", "wrong_size", put("tensors", 0, "shape", value=[4095])),
    lie("bytes that contradict the dtype", "wrong_size", put("tensors", 0, "dtype", value="F32")),
    lie("an unknown dtype", "bad_dtype", put("tensors", 0, "dtype", value="PICKLE")),
    lie("a name twice", "duplicate_name", put("tensors", 1, "name", value="a")),
    lie("an alias of the same name", "duplicate_name", put("aliases", value={"b": "a"})),
    lie("an alias of nothing", "bad_alias", put("aliases", value={"x": "y"})),
    lie("aliases of each other", "bad_alias", put("aliases", value={"x": "y", "y": "x"})),
    lie("an alias of itself", "bad_alias", put("aliases", value={"x": "x"})),
    lie("storage shared in a circle", "bad_alias",
        put("tensors", value=[tensor("a", 0, 4096, shares="b"), tensor("b", 4096, 4000, shares="a")])),
    lie("a partition that is a path", "bad_path", put("partitions", 0, "name", value="../partition-0.bin")),
    lie("an absolute partition", "bad_path", put("partitions", 0, "name", value="/dev/zero")),
    lie("a file that is a path", "bad_path", put("files", 0, "name", value="../../etc/passwd")),
    lie("a file with a nul", "bad_path", put("files", 0, "name", value="config\0.json")),
    lie("a file without end", "wrong_size", put("files", 0, "size_bytes", value=TIB)),
    lie("chunks of nothing", "bad_chunks", put("chunk_bytes", value=0)),
    lie("chunks of 2^62", "bad_chunks", put("chunk_bytes", value=2**62)),
    lie("a checksum of 33 bits", "bad_chunks", put("partitions", 0, "chunk_crc32c", value=[0, 2**32])),
    lie("a checksum too few", "bad_chunks", put("partitions", 0, "chunk_crc32c", value=[0])),
    lie("a name of a megabyte", "malformed", put("tensors", 0, "name", value="a" * (1 << 20))),
    lie("half a surrogate pair", "malformed", put("tensors", 0, "name", value="\ud800")),
    lie("an unknown key", "malformed", put("code", value="import os")),
    lie("an unknown key of a tensor", "malformed", put("tensors", 0, "code", value=1)),
]  # fmt: skip
TEXTS = [
    text("cut short", "malformed", lambda old: old[:-40]),
    text("a changed byte", "bad_digest", lambda old: old.replace(b'"test"', b'"tesu"')),
    text("white space after the seal", "bad_digest", lambda old: old + b"\n"),
    text("empty", "malformed", lambda old: b""),
    text("NaN", "malformed", lambda old: old.replace(b":4096,", b":NaN,", 1)),
    text("infinity", "malformed", lambda old: old.replace(b":4096,", b":-Infinity,", 1)),
    text("a float beyond infinity", "bad_digest", lambda old: old.replace(b":4096,", b":1e999,", 1)),
    text("not UTF-8", "malformed", lambda old: old.replace(b'"test"', b'"\xff\xfe"')),
    text("UTF-16", "malformed", lambda old: old.decode().encode("utf-16")),
    text("a byte order mark", "malformed", lambda old: b"\xef\xbb\xbf" + old),
    text("deep lists", "malformed", lambda old: b"[" * 200_000),
    text("deep objects", "malformed", lambda old: b'{"a":' * 200_000),
    text("a number of a million digits", "malformed", lambda old: b'{"a":' + b"9" * (1 << 20) + b"}"),
    text("a pickle", "malformed", lambda old: PICKLE),
    text("eight million lists", "malformed", lambda old: b"[" + b"[]," * (8 << 20) + b"0]"),
    Case("300,000 keys, one twice", many_names_twice, "manifest_invalid", "duplicate_name"),
]


def in_place_of(name: str) -> list[Case]:
    """Everything that is no plain file, where one should be."""
    makers: list[tuple[str, Callable[[Path], None]]] = [
        ("is a pipe", os.mkfifo),
        ("is a folder", Path.mkdir),
        ("is a socket", unix_socket),
        ("links to a device", link_to("/dev/zero")),
        ("links to itself", link_to(name)),
        ("links to its own bytes", real_link),
    ]
    missing = files(f"{name} is missing", lambda path: (path / name).unlink(), "checkpoint_missing")
    return [
        missing,
        *(files(f"{name} {what}", replace_file(name, make), rule="bad_path") for what, make in makers),
    ]


NAMES = ("manifest.json", "partition-0.bin", "config.json")
FILES = [
    *(case for name in NAMES for case in in_place_of(name)),
    files("a link to a secret", replace_file("config.json", link_to("/etc/passwd")), rule="bad_path"),
    files("a manifest of a terabyte", replace_file("manifest.json", sparse(TIB)), rule="wrong_size"),
    files("a config of a terabyte", replace_file("config.json", sparse(TIB)), rule="out_of_file"),
    files("a partition cut short", cut("partition-0.bin", 4096), rule="out_of_file"),
    files("a partition cut by a byte", cut("partition-0.bin", SIZE - 1), rule="out_of_file"),
    files("a partition grown", cut("partition-0.bin", SIZE + 1), rule="out_of_file"),
    files("a config cut short", cut("config.json", 1), rule="out_of_file"),
    files("a bit of a tensor", lambda path: flip(path / "partition-0.bin", 5000), "checksum_mismatch"),
    files("a bit of the padding", lambda path: flip(path / "partition-0.bin", SIZE - 1), "checksum_mismatch"),
    files("a bit of the config", lambda path: flip(path / "config.json", 0), "checksum_mismatch"),
    Case("nothing there", lambda path: None, "checkpoint_missing"),
    Case("a file in its place", lambda path: path.write_bytes(b"{}") and None, "read_failed"),
    Case("only pickle", only("pytorch_model.bin", PICKLE), "checkpoint_missing"),
]  # fmt: skip
CASES = [*LIES, *TEXTS, *FILES]
TOO_LARGE = Case("four terabytes of zeros, truthfully told", endless_zeros, "pool_full")
