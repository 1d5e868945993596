"""An operator's act is in the audit log before it is done, as an act of the API is: no act without its line.

One that was refused or failed has a second line that says so. Without a database nothing is recorded, and
whoever acts is told.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from temporalio.service import RPCError

from firstlight.database.connection import Database
from firstlight.database.keys_repository import audit
from firstlight.domain.errors import DatabaseUnavailable, FirstlightError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Of one act."""

    database: Database | None
    actor: str
    act: str
    subject: str

    async def add(self, detail: Mapping[str, object], *, act: str | None = None) -> None:
        """One more, of what became of it. What is done is done: a line that fails is a warning."""
        try:
            await self._write(detail, act or self.act)
        except FirstlightError as error:
            log.warning("the end of %s on %s was not audited: %s", self.act, self.subject, error.message)

    async def begin(self, detail: Mapping[str, object]) -> None:
        """Raises: DatabaseUnavailable, before anything is done."""
        try:
            await self._write(detail, self.act)
        except FirstlightError as error:
            raise DatabaseUnavailable(
                f"nothing was done, as the audit log cannot be written: {error.message}", subject=self.subject
            ) from error

    async def _write(self, detail: Mapping[str, object], act: str) -> None:
        if self.database is None:
            return
        async with self.database.transaction() as session:
            await audit(session, actor=self.actor, act=act, subject=self.subject, detail=detail)


@asynccontextmanager
async def written_down(
    database: Database | None, *, actor: str, act: str, subject: str, detail: Mapping[str, object]
) -> AsyncIterator[Lines]:
    """Do the act in the block: its line is there. Raises: DatabaseUnavailable, and then nothing was done."""
    lines = Lines(database=database, actor=actor, act=act, subject=subject)
    await lines.begin(detail)
    try:
        yield lines
    except (FirstlightError, RPCError) as error:
        await lines.add({"failed": error.message})
        raise
