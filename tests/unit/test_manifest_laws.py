"""Every way a manifest can lie has a rule of its own, and is refused before anything is opened or mapped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from firstlight.domain.errors import ManifestInvalid
from native_loader.manifest import parse_manifest, seal, serialize_manifest

Record = dict[str, Any]  # a manifest before it is believed


def valid() -> Record:
    return {
        "format_version": 1,
        "source": "hf://org/model",
        "revision": "abcd1234",
        "dtype": "F32",
        "transformers_version": "5.23.0",
        "chunk_bytes": 4096,
        "partitions": [{"name": "partition-0.bin", "size_bytes": 8192, "chunk_crc32c": [1, 2]}],
        "tensors": [
            tensor("a", offset=0, size_bytes=4096, shape=[32, 32], stride=[32, 1]),
            tensor("b", offset=4096, size_bytes=40, shape=[10], stride=[1]),
            tensor("b.view", offset=4104, size_bytes=8, shape=[2], stride=[1], shares="b"),
            tensor("c", offset=4352, size_bytes=4, shape=[], stride=[]),
        ],
        "aliases": {"tied": "a"},
        "files": [{"name": "config.json", "size_bytes": 2, "sha256": "0" * 64}],
    }


def tensor(
    name: str, *, offset: int, size_bytes: int, shape: list[int], stride: list[int], **more: Any
) -> Record:
    place = {"name": name, "partition": 0, "offset": offset, "size_bytes": size_bytes, "dtype": "F32"}
    return {**place, "shape": shape, "stride": stride, **more}


def text_of(record: Record) -> bytes:
    return seal(json.dumps(record, separators=(",", ":")).encode().removesuffix(b"}"))


def rule_of(text: bytes) -> str:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(text)
    return caught.value.rule


def set_in(record: Record, path: str, value: object) -> None:
    *way, last = path.split("/")
    at: Any = record
    for step in way:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value


BROKEN: list[tuple[str, str, object]] = [
    ("bad_version", "format_version", 2),
    ("bad_version", "format_version", 0),
    ("negative", "tensors/0/offset", -256),
    ("negative", "tensors/0/size_bytes", -1),
    ("negative", "tensors/0/shape", [-32, 32]),
    ("negative", "tensors/0/stride", [-32, 1]),
    ("negative", "tensors/0/partition", -1),
    ("negative", "partitions/0/size_bytes", -4096),
    ("overflow", "tensors/0/offset", 2**63),
    ("overflow", "tensors/0/size_bytes", 2**64),
    ("overflow", "tensors/0/shape", [2**40, 2**40]),
    ("overflow", "tensors/0/stride", [2**62, 1]),
    ("overflow", "tensors/1/offset", 2**63 - 1),
    ("out_of_file", "tensors/3/offset", 8192),
    ("out_of_file", "tensors/3/offset", 2**62),
    ("out_of_file", "tensors/0/partition", 1),
    ("wrong_size", "tensors/0/size_bytes", 4092),
    ("wrong_size", "tensors/0/shape", [32, 31]),
    ("wrong_size", "tensors/0/stride", [1]),
    ("wrong_size", "tensors/0/stride", [32, 2]),
    ("wrong_size", "tensors/0/dtype", "F16"),
    ("wrong_size", "tensors/2/offset", 4105),
    ("wrong_size", "tensors/1/dtype", "F4"),
    ("overlap", "tensors/3/offset", 4128),
    ("overlap", "tensors/3/offset", 4096),
    ("gap", "tensors/3/offset", 4608),
    ("gap", "tensors/3/offset", 4356),
    ("gap", "tensors/2/offset", 4136),
    ("gap", "tensors/2/offset", 4200),
    ("duplicate_name", "tensors/1/name", "a"),
    ("duplicate_name", "aliases", {"a": "b"}),
    ("bad_alias", "aliases", {"tied": "nothing"}),
    ("bad_alias", "aliases", {"tied": 3}),
    ("bad_alias", "aliases", {"tied": "tied"}),
    ("bad_alias", "tensors/2/shares", "nothing"),
    ("bad_alias", "tensors/2/shares", "b.view"),
    ("bad_path", "partitions/0/name", "../partition-0.bin"),
    ("bad_path", "partitions/0/name", "partition-1.bin"),
    ("bad_path", "files/0/name", "/etc/passwd"),
    ("bad_path", "files/0/name", ".."),
    ("bad_path", "files/0/name", "a\\b"),
    ("bad_path", "files/0/name", "a\u0000b"),
    ("bad_path", "files/0/name", ""),
    ("bad_path", "files/0/name", "manifest.json"),
    ("bad_path", "files/0/name", "partition-0.bin"),
    ("bad_dtype", "tensors/0/dtype", "F128"),
    ("bad_dtype", "dtype", "float32"),
    ("bad_chunks", "chunk_bytes", 0),
    ("bad_chunks", "chunk_bytes", 1000),
    ("bad_chunks", "chunk_bytes", 8192),
    ("bad_chunks", "partitions/0/chunk_crc32c", [1]),
    ("bad_chunks", "partitions/0/chunk_crc32c", [1, 2**32]),
    ("malformed", "tensors/0/offset", "0"),
    ("malformed", "tensors/0/offset", True),
    ("malformed", "tensors/0/offset", 0.0),
    ("malformed", "tensors/0/shape", 32),
    ("malformed", "tensors/0/name", None),
    ("malformed", "tensors", {}),
    ("malformed", "tensors/0", []),
    ("malformed", "aliases", []),
    ("malformed", "surprise", 1),
    ("malformed", "tensors/0/surprise", 1),
    ("malformed", "files/0/sha256", "0" * 63),
    ("malformed", "transformers_version", 5),
]


def test_the_valid_one_is_accepted() -> None:
    manifest = parse_manifest(text_of(valid()))
    assert [entry.name for entry in manifest.tensors] == ["a", "b", "b.view", "c"]
    assert manifest.aliases["tied"] == "a"
    assert parse_manifest(serialize_manifest(manifest)) == parse_manifest(serialize_manifest(manifest))


@pytest.mark.parametrize(("rule", "path", "value"), BROKEN, ids=lambda item: str(item)[:40])
def test_each_lie_has_its_rule(rule: str, path: str, value: object) -> None:
    record = valid()
    set_in(record, path, value)
    assert rule_of(text_of(record)) == rule


def test_unaccounted_bytes_at_the_end_are_a_gap() -> None:
    record = valid()
    record["partitions"][0] = {"name": "partition-0.bin", "size_bytes": 12288, "chunk_crc32c": [1, 2, 3]}
    assert rule_of(text_of(record)) == "gap"


def test_a_partition_must_be_padded() -> None:
    record = valid()
    record["partitions"][0]["size_bytes"] = 4400
    assert rule_of(text_of(record)) == "wrong_size"


def test_two_storages_may_not_share_bytes_undeclared() -> None:
    record = valid()
    del record["tensors"][2]["shares"]
    assert rule_of(text_of(record)) == "overlap"


def test_each_missing_field_is_malformed() -> None:
    for key in valid():
        record = valid()
        del record[key]
        if key != "transformers_version":  # the only one that may be absent
            assert rule_of(text_of(record)) == "malformed", key


def drop_last_byte(text: bytes) -> bytes:
    return text[:-1]


def swap_digest(text: bytes) -> bytes:
    flipped = b"0" if text[-5:-4] != b"0" else b"1"
    return text[:-5] + flipped + text[-4:]


def change_body(text: bytes) -> bytes:
    return text.replace(b"abcd1234", b"abcd1235")


def add_space(text: bytes) -> bytes:
    return text + b" "


@pytest.mark.parametrize("damage", [drop_last_byte, swap_digest, change_body, add_space])
def test_a_changed_byte_is_a_bad_digest(damage: Callable[[bytes], bytes]) -> None:
    assert rule_of(damage(text_of(valid()))) == "bad_digest"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format_version":NaN}',
        b'{"format_version":1e3}',
    ],
)
def test_what_is_not_a_manifest_is_malformed(text: bytes) -> None:
    assert rule_of(text) == "malformed"


def test_a_key_twice_is_refused_even_when_sealed() -> None:
    body = json.dumps(valid()).encode().removesuffix(b"}") + b',"revision":"other"'
    assert rule_of(seal(body)) == "duplicate_name"


def test_parsing_does_not_alter_what_is_parsed() -> None:
    record = valid()
    before = copy.deepcopy(record)
    parse_manifest(text_of(record))
    assert record == before
