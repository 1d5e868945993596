"""The sidecar of a fetch: which chunks of which file are there, so that a fetch resumes at a chunk.

One JSON header line (source revision, boot), then one `file chunk` line for every chunk that was written.
A torn last line, another revision, or another boot (page cache lost) is never trusted.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 16 * 2**20
NAME = ".fetch-journal"


class FetchJournal:
    """Append-only. `chunk in journal` asks for a pair (file index, chunk index)."""

    def __init__(self, directory: Path, *, revision: str) -> None:
        self._path = directory / NAME
        self._header = json.dumps({"revision": revision, "boot": _boot_id(), "chunk_bytes": CHUNK_BYTES})
        self._done = self._read()
        self._file = self._path.open("a" if self._done is not None else "w")
        if self._done is None:
            self._done = set()
            self._file.write(self._header + "\n")
            self._file.flush()

    def __contains__(self, chunk: tuple[int, int]) -> bool:
        return chunk in (self._done or ())

    def record(self, file_index: int, chunk_index: int) -> None:
        """Note a chunk whose bytes have been handed to the kernel."""
        assert self._done is not None
        self._done.add((file_index, chunk_index))
        self._file.write(f"{file_index} {chunk_index}\n")
        # To the kernel at once: what a kill -9 leaves is what the next process may trust.
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self) -> set[tuple[int, int]] | None:
        """The chunks of an earlier run of this same fetch, or None when there is nothing to trust."""
        if not self._path.exists():
            return None
        header, _, rest = self._path.read_text(errors="replace").partition("\n")
        if header != self._header or (rest and not rest.endswith("\n")):
            return None
        rows = [row.split() for row in rest.splitlines()]
        if not all(len(row) == 2 and row[0].isdecimal() and row[1].isdecimal() for row in rows):
            return None
        return {(int(file), int(chunk)) for file, chunk in rows}


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
