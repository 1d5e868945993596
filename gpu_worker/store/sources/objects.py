"""Ranged reads through obstore, with its failures said in our words."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import obstore
from obstore import exceptions as failures
from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable
from gpu_worker.convert.sentence_layout import MODULES, POOLING
from gpu_worker.store.sources.description import Source, SourceDescription, SourceFile, described
from gpu_worker.store.sources.layout import INDEX, choose, safe_name, shards_of_index, sizes_present
from gpu_worker.store.sources.redaction import redacted

ObjectStore: TypeAlias = S3Store | GCSStore | AzureStore | HTTPStore

RETRY = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 2,
    },
}


_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


# Any: obstore's client options are a TypedDict that its runtime module does not export.
def client_options(**more: Any) -> dict[str, Any]:
    return {"connect_timeout": "10s", "timeout": "120s", **more}


@contextmanager
def saying(uri: str, what: str) -> Iterator[None]:
    """Turn an object store's failure into one of ours that names the source and the step."""
    try:
        yield
    except (failures.PermissionDeniedError, failures.UnauthenticatedError) as failure:
        raise _refused(uri, what) from failure
    except (FileNotFoundError, failures.NotFoundError) as failure:
        raise SourceUnreachable(f"{uri}: {what} does not exist", source=uri) from failure
    except failures.PreconditionError as failure:
        raise SourceCorrupt(f"{uri}: {what} changed while it was being fetched", source=uri) from failure
    except failures.BaseError as failure:
        # An address in it may carry a signature that the client put there.
        sentence = redacted(str(failure).splitlines()[0])[:300]
        # A refused listing comes as a generic failure; the status is told in its text only.
        if "status code: 403" in sentence or "status code: 401" in sentence:
            raise _refused(uri, what) from failure
        # Not `from failure`: a log that prints the cause would print that address.
        raise SourceUnreachable(f"{uri}: reading {what} failed: {sentence}", source=uri) from None


def _refused(uri: str, what: str) -> SourceUnreachable:
    return SourceUnreachable(
        f"{uri} refused access to {what}: check the credentials in the host's environment", source=uri
    )


class ObjectReader:
    """Exact ranges of objects below one store."""

    def __init__(self, *, store: ObjectStore, uri: str) -> None:
        self.store = store
        self.uri = uri

    async def head(self, name: str, *, path: str | None = None) -> SourceFile:
        with saying(self.uri, name):
            meta = await obstore.head_async(self.store, path or name)
        return SourceFile(safe_name(name), int(meta["size"]), meta["e_tag"])

    async def read(self, path: str, *, start: int, size_bytes: int, etag: str | None) -> memoryview:
        """Exactly `size_bytes` from `start`, of the version with `etag` if one is given."""
        options: dict[str, object] = {"range": (start, start + size_bytes)}
        # A weak etag never matches an If-Match.
        if etag is not None and not etag.startswith("W/"):
            options["if_match"] = etag
        with saying(self.uri, path):
            answer = await obstore.get_async(self.store, path, options=options)
            data = memoryview(await answer.bytes_async())
        if data.nbytes != size_bytes:
            raise SourceCorrupt(
                f"{self.uri}: {path} gave {data.nbytes} bytes where {size_bytes} were asked", source=self.uri
            )
        return data


class BucketSource(Source):
    """A prefix of an S3, GCS or Azure bucket that holds a model's files, or one .gguf object.

    Credentials, endpoint and region come from the environment, under the names of each cloud's own clients.
    """

    def __init__(self, *, uri: str, store: ObjectStore, file_name: str | None) -> None:
        self._reader = ObjectReader(store=store, uri=uri)
        self._file_name = file_name
        self._uri = uri

    async def describe(self) -> SourceDescription:
        listing = await self._listing()
        shards = None
        if INDEX in listing:
            shards = shards_of_index(bytes(await self._whole(listing[INDEX])))
        layout, wanted = choose(sorted(listing), shards)
        sizes_present(wanted, {name: listing[name].size_bytes for name in wanted})
        return described(self._uri, layout, [listing[name] for name in wanted])

    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        return await self._reader.read(file.name, start=start, size_bytes=size_bytes, etag=file.etag)

    async def _whole(self, file: SourceFile) -> memoryview:
        return await self.read_range(file, start=0, size_bytes=file.size_bytes)

    async def _listing(self) -> dict[str, SourceFile]:
        if self._file_name is not None:
            return {self._file_name: await self._reader.head(self._file_name)}
        with saying(self._uri, "the listing"):
            answer = await obstore.list_with_delimiter_async(self._reader.store)
        found = {meta["path"].rpartition("/")[2]: meta for meta in answer["objects"]}
        if not found:
            raise SourceUnreachable(f"{self._uri}: there is nothing at this prefix", source=self._uri)
        # Names nobody asks for (dot files, folders' markers) may be as odd as they like.
        listed = {name: SourceFile(name, int(meta["size"]), meta["e_tag"]) for name, meta in found.items()}
        if MODULES in listed:
            listed |= await self._pooling()
        return listed

    async def _pooling(self) -> dict[str, SourceFile]:
        """The one file that stands in a folder, where a listing of the top does not look."""
        try:
            return {POOLING: await self._reader.head(POOLING)}
        except SourceUnreachable as failure:
            if isinstance(failure.__cause__, FileNotFoundError):
                return {}
            raise


def open_bucket(*, uri: str, scheme: str, root: str, file_name: str | None) -> BucketSource:
    """Open `root` (scheme://bucket/prefix); when one object is meant, `file_name` names it below root."""
    store: ObjectStore
    endpoints = [os.environ.get(name, "") for name in _ENDPOINTS.get(scheme, ())]
    # A private endpoint may speak plain HTTP, but only if whoever runs this host wrote so.
    options = client_options(allow_http=any(url.startswith("http://") for url in endpoints))
    with saying(uri, "the bucket"):
        if scheme == "s3":
            store = S3Store.from_url(root, client_options=options, retry_config=RETRY)
        elif scheme == "gs":
            store = _google(root)
        else:
            store = AzureStore.from_url(root, client_options=options, retry_config=RETRY)
    return BucketSource(uri=uri, store=store, file_name=file_name)


def _google(root: str) -> GCSStore:
    """By the environment of Google's own clients: credentials, or STORAGE_EMULATOR_HOST and none."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if not emulator:
        return GCSStore.from_url(root, client_options=client_options(), retry_config=RETRY)
    base = emulator if "://" in emulator else f"http://{emulator}"
    # How the client is told another address: in a key file that holds no key.
    key = {"gcs_base_url": base, "disable_oauth": True, "client_email": "", "private_key": ""}
    return GCSStore.from_url(
        root,
        service_account_key=json.dumps({**key, "private_key_id": ""}),
        skip_signature=True,
        client_options=client_options(allow_http=base.startswith("http://")),
        retry_config=RETRY,
    )


def decode_json(text: bytes, *, uri: str, what: str) -> Any:
    """Any: a remote's JSON, checked field by field by the caller. Raises: SourceCorrupt."""
    try:
        return json.loads(text)
    except ValueError as failure:
        raise SourceCorrupt(f"{uri}: {what} is not JSON", source=uri) from failure
