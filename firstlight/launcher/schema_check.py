"""Whether a role's database has the tables that this release needs; roles never change it by themselves."""

from __future__ import annotations

import asyncio
import logging

from firstlight.database.schema import is_behind
from firstlight.domain.errors import DatabaseUnavailable, InvalidSettings

log = logging.getLogger(__name__)


async def check_schema(url: str) -> None:
    """A database that does not answer is no reason not to start. Raises: InvalidSettings."""
    try:
        must_migrate = await asyncio.to_thread(is_behind, url)
    except DatabaseUnavailable as failure:
        log.warning("the schema cannot be looked at now: %s", failure.message)
        return
    if must_migrate:
        raise InvalidSettings(
            "the database of FIRSTLIGHT_DATABASE_URL lacks tables that this release needs: run "
            "`firstlight upgrade-database` once",
            setting="FIRSTLIGHT_DATABASE_URL",
        )
