"""Atheris target: whatever bytes come, a manifest is believed or refused with ManifestInvalid.

    python tests/fuzz/fuzz_manifest.py CORPUS [-max_total_time=SECONDS]

Bytes are tried as they are, and once more as a body that is sealed first: else nearly all would end at the
digest, and never reach the laws.
"""

from __future__ import annotations

import copy
import json
import random
import sys
from typing import Any

import atheris
from instrumentation import instrument

from firstlight.domain.errors import ManifestInvalid
from native_loader import manifest, manifest_decoder, manifest_laws
from native_loader.manifest import Manifest, parse_manifest, seal, serialize_manifest

NUMBERS = [0, 1, -1, 255, 256, 257, 4095, 4096, 8192, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30]
VALUES: list[Any] = [
    *NUMBERS,
    True,
    None,
    0.5,
    "",
    "a",
    "b",
    "U8",
    "F32",
    "F4",
    "../x",
    "\ud800",
    [],
    {},
    [0],
    [1, 1],
]


def check(text: bytes) -> None:
    try:
        believed = parse_manifest(text)
    except ManifestInvalid:
        return
    check_accepted(believed)


def check_accepted(believed: Manifest) -> None:
    """What every reader relies on, said once more and in other words than the laws."""
    assert parse_manifest(serialize_manifest(believed)).tensors == believed.tensors
    names = {entry.name for entry in believed.tensors}
    assert len(names) == len(believed.tensors)
    for entry in believed.tensors:
        partition = believed.partitions[entry.partition]
        assert 0 <= entry.offset <= entry.offset + entry.size_bytes <= partition.size_bytes < 2**63
        assert len(entry.shape) == len(entry.stride)
    for partition in believed.partitions:
        assert "/" not in partition.name and len(partition.chunk_crc32c) <= partition.size_bytes
    for alias, target in believed.aliases.items():
        assert target in names and alias not in names


def test_one_input(data: bytes) -> None:
    check(data)
    check(seal(data))


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time a value somewhere in the JSON becomes another; else bytes are changed blindly."""
    chance = random.Random(seed)
    try:
        record = json.loads(data + b"}")
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(data, len(data)))
    if not isinstance(record, dict) or chance.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    for _ in range(chance.randint(1, 3)):
        change_somewhere(record, chance)
    return json.dumps(record, separators=(",", ":")).encode().removesuffix(b"}")[:max_size]


def change_somewhere(value: Any, chance: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = chance.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.9:
            value = inner
            continue
        match chance.randrange(4):
            case 0 if isinstance(inner, int):
                value[key] = inner + chance.choice([-4096, -256, -1, 1, 256, 4096])
            case 1 if isinstance(value, list):
                value.insert(key, copy.deepcopy(inner))
            case 2:
                del value[key]
            case _:
                value[key] = copy.deepcopy(chance.choice(VALUES))
        return


if __name__ == "__main__":
    instrument(manifest, manifest_decoder, manifest_laws)
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
