"""`hf://org/name[/file.gguf][@revision]`: the Hugging Face Hub, or a mirror that HF_ENDPOINT names.

The revision is resolved to a commit once, and every byte is asked for at that commit.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

import httpx
from obstore.store import HTTPStore

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable, SourceUnsupported
from gpu_worker.store.sources.description import Source, SourceDescription, SourceFile, described
from gpu_worker.store.sources.layout import INDEX, choose, is_looked_at, shards_of_index, sizes_present
from gpu_worker.store.sources.objects import RETRY, ObjectReader, client_options, decode_json
from gpu_worker.store.sources.redaction import redacted

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")


class HubSource(Source):
    """One repository at one revision. `HF_TOKEN` is sent when it is set."""

    def __init__(self, *, uri: str, repository: str, revision: str, file_name: str | None = None) -> None:
        if not _REPOSITORY.fullmatch(repository) or ".." in repository:
            raise SourceUnsupported(f"{redacted(uri)}: expected hf://organisation/name[@revision]")
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise SourceUnsupported(f"{uri}: {revision!r} is not a revision", source=uri)
        self._uri = uri
        self._file_name = file_name
        self._repository = repository
        self._revision = revision
        self._endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        token = os.environ.get("HF_TOKEN")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._commit: str | None = None

    async def describe(self) -> SourceDescription:
        listing = await self._listing(await self._resolve())
        if self._file_name is not None:
            listing = {name: file for name, file in listing.items() if name == self._file_name}
        shards = None
        if (index := listing.get(INDEX)) is not None:
            text = await self.read_range(index, start=0, size_bytes=index.size_bytes)
            shards = shards_of_index(bytes(text))
        layout, wanted = choose(sorted(listing), shards)
        sizes_present(wanted, {name: listing[name].size_bytes for name in wanted})
        return described(self._uri, layout, [listing[name] for name in wanted])

    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        reader = ObjectReader(store=self._store(await self._resolve()), uri=self._uri)
        # No If-Match: the commit pins the bytes, and a redirect's target has another etag.
        return await reader.read(file.name, start=start, size_bytes=size_bytes, etag=None)

    def _store(self, commit: str) -> HTTPStore:
        options = client_options(
            allow_http=self._endpoint.startswith("http://"), default_headers=self._headers or {}
        )
        base = f"{self._endpoint}/{self._repository}/resolve/{commit}"
        return HTTPStore.from_url(base, client_options=options, retry_config=RETRY)

    async def _resolve(self) -> str:
        if self._commit is None:
            route = f"api/models/{self._repository}/revision/{quote(self._revision, safe='')}"
            answer = await self._get_json(route)
            commit = answer.get("sha") if isinstance(answer, dict) else None
            if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
                raise SourceCorrupt(f"{self._uri}: the hub named no commit", source=self._uri)
            self._commit = commit
        return self._commit

    async def _listing(self, commit: str) -> dict[str, SourceFile]:
        rows = await self._get_json(
            f"api/models/{self._repository}/tree/{commit}?recursive=true&expand=false"
        )
        try:
            files = [row for row in rows if row["type"] == "file" and is_looked_at(row["path"])]
            return {row["path"]: SourceFile(row["path"], int(row["size"]), str(row["oid"])) for row in files}
        except (KeyError, TypeError, ValueError) as failure:
            raise SourceCorrupt(f"{self._uri}: the hub's listing is malformed", source=self._uri) from failure

    # Any: the hub's JSON, checked by the callers.
    async def _get_json(self, route: str) -> Any:
        url = f"{self._endpoint}/{route}"
        try:
            async with httpx.AsyncClient(headers=self._headers, timeout=30, follow_redirects=True) as client:
                answer = await client.get(url)
        except httpx.HTTPError as failure:
            raise SourceUnreachable(f"{self._uri}: {url} did not answer: {failure!r}") from failure
        if answer.status_code in (401, 403):
            raise SourceUnreachable(f"{self._uri} is private or gated: set HF_TOKEN", source=self._uri)
        if answer.status_code == 404:
            raise SourceUnreachable(f"{self._uri} does not exist on {self._endpoint}", source=self._uri)
        if answer.status_code != 200:
            raise SourceUnreachable(f"{self._uri}: the hub answered {answer.status_code}", source=self._uri)
        return decode_json(answer.content, uri=self._uri, what="the hub's answer")
