"""`file://`: a GGUF file or a Hugging Face folder on this host, converted where it lies."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from firstlight.domain.errors import SourceCorrupt, SourceUnreachable, SourceUnsupported
from gpu_worker.convert.sentence_layout import MODULES, POOLING
from gpu_worker.store.sources.description import Source, SourceDescription, SourceFile, described
from gpu_worker.store.sources.layout import INDEX, choose, refuse_pickle, shards_of_index, sizes_present


class FileSource(Source):
    """A path of this host. It is read in place, so it must not change while it is converted."""

    def __init__(self, *, uri: str, path: Path) -> None:
        self._uri = uri
        self._path = path

    @property
    def local_path(self) -> Path:
        return self._path

    async def describe(self) -> SourceDescription:
        return await asyncio.to_thread(self._describe)

    async def read_range(self, file: SourceFile, *, start: int, size_bytes: int) -> memoryview:
        return await asyncio.to_thread(self._read, file, start, size_bytes)

    def _describe(self) -> SourceDescription:
        try:
            if self._path.is_dir():
                return self._describe_folder()
            return self._describe_file()
        except OSError as failure:
            raise SourceUnreachable(
                f"cannot read {self._path}: {failure.strerror}", source=self._uri
            ) from failure

    def _describe_file(self) -> SourceDescription:
        file = self._stat(self._path, self._path.name)
        refuse_pickle(file.name)
        if not file.name.lower().endswith(".gguf"):
            raise SourceUnsupported(
                f"{self._path} is neither a folder nor a .gguf file; for safetensors, name their folder",
                source=self._uri,
            )
        layout, _ = choose([file.name], None)
        sizes_present([file.name], {file.name: file.size_bytes})
        return described(self._uri, layout, [file])

    def _describe_folder(self) -> SourceDescription:
        names = sorted(entry.name for entry in os.scandir(self._path) if entry.is_file())
        if MODULES in names and (self._path / POOLING).is_file():
            names.append(POOLING)
        shards = shards_of_index((self._path / INDEX).read_bytes()) if INDEX in names else None
        layout, wanted = choose(names, shards)
        files = [self._stat(self._path / name, name) for name in wanted]
        sizes_present(wanted, {file.name: file.size_bytes for file in files})
        return described(self._uri, layout, files)

    def _stat(self, path: Path, name: str) -> SourceFile:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SourceUnsupported(f"{path} is not a regular file", source=self._uri)
        return SourceFile(name, status.st_size, _etag(status))

    def _read(self, file: SourceFile, start: int, size_bytes: int) -> memoryview:
        path = self._path / file.name if self._path.is_dir() else self._path
        try:
            with path.open("rb") as opened:
                found = os.fstat(opened.fileno())
                data = os.pread(opened.fileno(), size_bytes, start)
        except OSError as failure:
            raise SourceUnreachable(f"cannot read {path}: {failure.strerror}", source=self._uri) from failure
        if file.etag not in (None, _etag(found)):
            raise SourceCorrupt(f"{path} changed while it was being fetched", source=self._uri)
        if len(data) != size_bytes:
            raise SourceCorrupt(f"{path} ended {size_bytes - len(data)} bytes early", source=self._uri)
        return memoryview(data)


def _etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}"
