"""Which chunks of a download are on the SSD, with their checksums: after a kill it goes on from there.

One JSON header line (revision of the source, plan), then `index crc32c` for every chunk that was written.
Under another header nothing is trusted, nor is a torn last line; a chunk counts if its bytes have their sum.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

NAME = "journal"


class ChunkJournal:
    """Append-only, and not for several threads at once. `done` maps chunks to their checksums."""

    def __init__(self, directory: Path, *, revision: str, plan: str) -> None:
        self._path = directory / NAME
        self._header = json.dumps({"revision": revision, "plan": plan})
        found = self._read()
        self.done: dict[int, int] = found or {}
        self._file = self._path.open("a" if found is not None else "w")
        if found is None:
            self._file.write(self._header + "\n")
            self._file.flush()

    def record(self, index: int, crc32c: int) -> None:
        """Note a chunk that has been written."""
        self.done[index] = crc32c
        self._file.write(f"{index} {crc32c}\n")
        # To the kernel at once: what a kill -9 leaves is what the next process may trust.
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> dict[int, int] | None:
        if not self._path.exists():
            return None
        header, _, rest = self._path.read_text(errors="replace").partition("\n")
        if header != self._header:
            return None
        if torn := rest.rpartition("\n")[2]:
            rest = rest[: -len(torn)]
            with self._path.open("r+b") as file:
                file.truncate(len(f"{header}\n{rest}".encode()))
        rows = [row.split() for row in rest.splitlines()]
        if not all(len(row) == 2 and row[0].isdecimal() and row[1].isdecimal() for row in rows):
            return None
        return {int(index): int(crc) for index, crc in rows}
