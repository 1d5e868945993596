"""`http(s)://`: a folder of a plain web server in Hugging Face layout, or one .gguf file.

A web server has no listing, so the layout's well-known names are asked for one by one.
"""

from __future__ import annotations

import asyncio

from obstore.store import HTTPStore

from firstlight.domain.errors import SourceUnreachable
from gpu_worker.convert.sentence_layout import MODULES, POOLING
from gpu_worker.store.sources.description import Source, SourceDescription, SourceFile, described
from gpu_worker.store.sources.layout import (
    INDEX,
    MANIFEST,
    SINGLE,
    SMALL_FILES,
    choose,
    files_of_manifest,
    shards_of_index,
    sizes_present,
)
from gpu_worker.store.sources.objects import RETRY, ObjectReader, client_options


class WebSource(Source):
    """`base` is the folder's URL; `file_name` names the one file meant, or None for a whole layout."""

    def __init__(self, *, uri: str, base: str, file_name: str | None) -> None:
        options = client_options(allow_http=base.startswith("http://"))
        store = HTTPStore.from_url(base, client_options=options, retry_config=RETRY)
        self._reader = ObjectReader(store=store, uri=uri)
        self._uri = uri
        self._file_name = file_name

    async def describe(self) -> SourceDescription:
        if self._file_name is not None:
            files = {self._file_name: await self._reader.head(self._file_name)}
            shards = None
        else:
            files = await self._existing((*SMALL_FILES, INDEX, SINGLE, MANIFEST))
            shards = await self._shards(files)
            pooling = (POOLING,) if MODULES in files else ()
            files.update(await self._existing((*(shards or ()), *pooling, *await self._of_checkpoint(files))))
        layout, wanted = choose(sorted(files), shards)
        sizes_present(wanted, {name: files[name].size_bytes for name in wanted})
        return described(self._uri, layout, [files[name] for name in wanted])

    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        return await self._reader.read(file.name, start=start, size_bytes=size_bytes, etag=file.etag)

    async def _shards(self, files: dict[str, SourceFile]) -> tuple[str, ...] | None:
        if (index := files.get(INDEX)) is None:
            return None
        return shards_of_index(bytes(await self.read_range(index, start=0, size_bytes=index.size_bytes)))

    async def _of_checkpoint(self, files: dict[str, SourceFile]) -> tuple[str, ...]:
        if (manifest := files.get(MANIFEST)) is None:
            return ()
        text = await self.read_range(manifest, start=0, size_bytes=manifest.size_bytes)
        return files_of_manifest(bytes(text))

    async def _existing(self, names: tuple[str, ...]) -> dict[str, SourceFile]:
        found = await asyncio.gather(*(self._head_or_none(name) for name in names))
        return {file.name: file for file in found if file is not None}

    async def _head_or_none(self, name: str) -> SourceFile | None:
        try:
            return await self._reader.head(name)
        except SourceUnreachable as failure:
            if isinstance(failure.__cause__, FileNotFoundError):
                return None
            raise
