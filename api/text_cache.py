"""Tokenizers of checkpoints: in memory by checkpoint, on disk by manifest digest, else from a store."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from api.checkpoint_files import FileSource
from api.text.model_text import FILES, ModelText
from firstlight.database.models_repository import ModelRecord
from firstlight.domain.errors import FirstlightError

logger = logging.getLogger(__name__)

# A tokenizer takes some ten megabytes of memory; the least recently used one goes first.
IN_MEMORY = 64
_DIGEST = re.compile(r"[A-Za-z0-9:_-]{8,128}")


class TextCache:
    """One per process. Loading is shared by all requests that want the same checkpoint at once."""

    def __init__(self, *, folder: Path, source: FileSource) -> None:
        self._folder = folder
        self._source = source
        self._texts: OrderedDict[str, ModelText] = OrderedDict()
        self._loading: dict[tuple[str, str | None], asyncio.Task[ModelText | None]] = {}

    def loaded(self, checkpoint_id: str) -> ModelText | None:
        """The text if it is in memory: all that a warm request ever needs."""
        text = self._texts.get(checkpoint_id)
        if text is not None:
            self._texts.move_to_end(checkpoint_id)
        return text

    async def load(self, record: ModelRecord, *, host_id: str | None) -> ModelText | None:
        """From disk, else from host `host_id` or any that holds it. None: no host holds it yet.

        Raises: SourceCorrupt if its files are no tokenizer; Overloaded if it cannot be asked for now.
        """
        if (text := self.loaded(record.checkpoint_id)) is not None:
            return text
        key = (record.checkpoint_id, host_id)
        if key not in self._loading:
            task = asyncio.create_task(self._load(record, host_id), name=f"text of {record.name}")
            self._loading[key] = task
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        # Shielded: one request that goes away must not cancel what others wait for.
        return await asyncio.shield(self._loading[key])

    async def preload(self, records: list[ModelRecord]) -> None:
        """Bring what lies on disk into memory, so that a long prompt is refused before a start."""
        for record in records[:IN_MEMORY]:
            if record.checkpoint_id in self._texts:
                continue
            try:
                if (text := await asyncio.to_thread(self._from_disk, record.manifest_digest)) is not None:
                    self._keep(record.checkpoint_id, text)
            except FirstlightError as error:
                logger.warning("cached text of %s is unusable: %s", record.name, error.message)

    def forget(self, checkpoint_id: str) -> None:
        self._texts.pop(checkpoint_id, None)

    async def _load(self, record: ModelRecord, host_id: str | None) -> ModelText | None:
        text = await asyncio.to_thread(self._from_disk, record.manifest_digest)
        if text is None:
            found = await self._source.fetch(record.checkpoint_id, first=host_id)
            if found is None:
                return None
            files = {name: found.files[name] for name in FILES if name in found.files}
            text = await asyncio.to_thread(ModelText, files)
            await asyncio.to_thread(self._to_disk, found.manifest_digest, files)
        self._keep(record.checkpoint_id, text)
        return text

    def _keep(self, checkpoint_id: str, text: ModelText) -> None:
        self._texts[checkpoint_id] = text
        while len(self._texts) > IN_MEMORY:
            self._texts.popitem(last=False)

    def _from_disk(self, digest: str) -> ModelText | None:
        if not _DIGEST.fullmatch(digest) or not (self._folder / digest).is_dir():
            return None
        folder = self._folder / digest
        return ModelText({name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()})

    def _to_disk(self, digest: str, files: Mapping[str, bytes]) -> None:
        """Write all or nothing: other processes read this folder too. A full disk costs only the cache."""
        if not _DIGEST.fullmatch(digest) or (self._folder / digest).exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
            for name, content in files.items():
                (temporary / name).write_bytes(content)
            os.rename(temporary, self._folder / digest)
        except OSError as error:
            logger.warning("text of %s is not cached on disk: %s", digest, error)
