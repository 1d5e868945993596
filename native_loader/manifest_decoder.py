"""From a manifest's bytes to its records, trusting nothing: types, signs, magnitudes, digest."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from types import MappingProxyType
from typing import NoReturn, cast

from firstlight.domain.errors import ManifestInvalid
from native_loader.manifest import (
    DIGEST_END,
    DIGEST_KEY,
    FORMAT_VERSION,
    LONGEST_NAME,
    FileEntry,
    Manifest,
    PartitionEntry,
    TensorEntry,
)

LARGEST = 2**63 - 1
"""Offsets must fit a signed 64-bit file position."""
LONGEST_MESSAGE = 500
_TENSOR_KEYS = {"name", "partition", "offset", "size_bytes", "dtype", "shape", "stride"}
_TENSOR_KEYS_AND_SHARES = _TENSOR_KEYS | {"shares"}
_HEX = frozenset("0123456789abcdef")
_DIGEST_BYTES = len(DIGEST_KEY) + 64 + len(DIGEST_END)


def fail(rule: str, message: str, **fields: object) -> NoReturn:
    raise ManifestInvalid(f"manifest: {message[:LONGEST_MESSAGE]}", rule=rule, **fields)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        fail("duplicate_name", f"the key {repeated[:80]!r} stands twice in one object")
    return record


def _refuse_constant(text: str) -> NoReturn:
    fail("malformed", f"{text} is not a number of JSON")


class _Record:
    """One JSON object, read key by key; what is missing, of another type or left over is malformed."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            fail("malformed", f"{what} is not an object")
        self._rest = cast("dict[str, object]", dict(value))
        self._what = what

    def take(self, key: str) -> object:
        if key not in self._rest:
            fail("malformed", f"{self._what} lacks {key!r}")
        return self._rest.pop(key)

    def text(self, key: str) -> str:
        value = self.take(key)
        if not isinstance(value, str):
            fail("malformed", f"{key!r} of {self._what} is not a string")
        check_text(value, f"{key!r} of {self._what}")
        return value

    def optional_text(self, key: str) -> str | None:
        if self._rest.get(key) is None:
            self._rest.pop(key, None)
            return None
        return self.text(key)

    def integer(self, key: str) -> int:
        return _integer(self.take(key), f"{key!r} of {self._what}")

    def items(self, key: str) -> list[object]:
        value = self.take(key)
        if not isinstance(value, list):
            fail("malformed", f"{key!r} of {self._what} is not a list")
        return cast("list[object]", value)

    def integers(self, key: str) -> tuple[int, ...]:
        return tuple(_integer(item, f"{key!r} of {self._what}") for item in self.items(key))

    def close(self) -> None:
        if self._rest:
            fail("malformed", f"{self._what} has an unknown key {min(self._rest)!r}")


def check_text(value: str, what: str) -> None:
    """Raises: ManifestInvalid for a string without end, or with half a surrogate pair: nothing prints it."""
    if len(value) > LONGEST_NAME:
        fail("malformed", f"{what} has {len(value)} characters")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            fail("malformed", f"{what} is not Unicode text")


def _integer(value: object, what: str) -> int:
    if type(value) is not int:  # a bool is an int to isinstance
        fail("malformed", f"{what} is not a whole number")
    if value < 0:
        fail("negative", f"{what} is negative")
    if value > LARGEST:
        fail("overflow", f"{what} exceeds 2^63 - 1")
    return value


def _tensor(value: object) -> TensorEntry:
    return _plain_tensor(value) or _questionable_tensor(value)


def _plain_tensor(value: object) -> TensorEntry | None:
    """The entry, if nothing is wrong with it: ten thousand of them are told in a few hundredths of a second.

    None for whatever deserves a second look; `_questionable_tensor` takes it, and names what is wrong.
    """
    if type(value) is not dict or not _TENSOR_KEYS <= value.keys() <= _TENSOR_KEYS_AND_SHARES:
        return None
    name, dtype, shares = value["name"], value["dtype"], value.get("shares")
    if type(name) is not str or type(dtype) is not str or not (shares is None or type(shares) is str):
        return None
    if not (name.isascii() and len(name) <= LONGEST_NAME and len(dtype) <= LONGEST_NAME):
        return None
    partition, offset, size_bytes = value["partition"], value["offset"], value["size_bytes"]
    shape, stride = value["shape"], value["stride"]
    if type(shape) is not list or type(stride) is not list:
        return None
    for number in (partition, offset, size_bytes, *shape, *stride):
        if type(number) is not int or not 0 <= number <= LARGEST:
            return None
    return TensorEntry(name, partition, offset, size_bytes, dtype, tuple(shape), tuple(stride), shares)


def _questionable_tensor(value: object) -> TensorEntry:
    record = _Record(value, "a tensor")
    entry = TensorEntry(
        name=record.text("name"),
        partition=record.integer("partition"),
        offset=record.integer("offset"),
        size_bytes=record.integer("size_bytes"),
        dtype=record.text("dtype"),
        shape=record.integers("shape"),
        stride=record.integers("stride"),
        shares=record.optional_text("shares"),
    )
    record.close()
    return entry


def _partition(value: object) -> PartitionEntry:
    record = _Record(value, "a partition")
    entry = PartitionEntry(
        name=record.text("name"),
        size_bytes=record.integer("size_bytes"),
        chunk_crc32c=record.integers("chunk_crc32c"),
    )
    record.close()
    return entry


def _file(value: object) -> FileEntry:
    record = _Record(value, "a file")
    entry = FileEntry(
        name=record.text("name"), size_bytes=record.integer("size_bytes"), sha256=record.text("sha256")
    )
    record.close()
    if len(entry.sha256) != 64 or not _HEX.issuperset(entry.sha256):
        fail("malformed", "the sha256 of a file is not 64 lower-case hex digits", name=entry.name)
    return entry


def _aliases(value: object) -> MappingProxyType[str, str]:
    if not isinstance(value, dict):
        fail("malformed", "'aliases' is not an object")
    for alias, target in value.items():
        if not isinstance(target, str):
            fail("bad_alias", f"alias {alias!r} does not name a tensor", name=alias)
        check_text(alias, "an alias")
    return MappingProxyType(cast("dict[str, str]", value))


def _load_json(text: bytes) -> object:
    try:
        # ASCII, as written: JSON's escapes carry the rest. Deep nesting raises RecursionError.
        return json.loads(
            text.decode("ascii"), object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"manifest: not JSON: {error}", rule="malformed") from error


def _check_digest(text: bytes, digest: str) -> None:
    body, tail = text[:-_DIGEST_BYTES], text[-_DIGEST_BYTES:]
    expected = hashlib.sha256(body).hexdigest()
    if digest != f"sha256:{expected}" or tail != DIGEST_KEY + expected.encode() + DIGEST_END:
        fail("bad_digest", "the text differs from its digest")


def decode_manifest(text: bytes) -> Manifest:
    """Raises: ManifestInvalid (malformed, duplicate_name, negative, overflow, bad_version, bad_digest)."""
    record = _Record(_load_json(text), "the manifest")
    version = record.integer("format_version")
    if version != FORMAT_VERSION:  # before all else: another version may seal and say things otherwise
        fail("bad_version", f"format version {version} is not {FORMAT_VERSION}", format_version=version)
    digest = record.text("digest")
    _check_digest(text, digest)
    manifest = Manifest(
        format_version=version,
        source=record.text("source"),
        revision=record.text("revision"),
        dtype=record.text("dtype"),
        transformers_version=record.optional_text("transformers_version"),
        chunk_bytes=record.integer("chunk_bytes"),
        partitions=tuple(_partition(item) for item in record.items("partitions")),
        tensors=tuple(_tensor(item) for item in record.items("tensors")),
        aliases=_aliases(record.take("aliases")),
        files=tuple(_file(item) for item in record.items("files")),
        digest=digest,
    )
    record.close()
    return manifest
