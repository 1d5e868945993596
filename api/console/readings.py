"""Where the console's sections come from: one read of Postgres for all, and what this process knows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from api.console.sections import (
    Rows,
    host_rows,
    instance_rows,
    migration_rows,
    model_rows,
    progress_rows,
    start_rows,
)
from api.routing.route_table import LIVE
from firstlight.database.engine_loads_repository import list_loads
from firstlight.database.hosts_repository import list_hosts
from firstlight.database.instances_repository import list_instances
from firstlight.database.migrations_repository import list_migrations
from firstlight.database.starts_repository import list_starts

if TYPE_CHECKING:
    from api.services import Services

STARTS_SHOWN = 25
MIGRATIONS_SHOWN = 15
REQUESTS_SHOWN = 200

# Any: JSON.
Sections = dict[str, Any]


async def read_fleet(services: Services) -> Sections:
    """What only Postgres knows. Raises: DatabaseUnavailable."""
    async with services.database.session() as session:
        hosts = await list_hosts(session)
        instances = await list_instances(session, states=LIVE)
        loads = await list_loads(session)
        starts = await list_starts(session, limit=STARTS_SHOWN, with_candidates=False)
        migrations = await list_migrations(session, limit=MIGRATIONS_SHOWN)
    return {
        "hosts": host_rows(hosts),
        "instances": instance_rows(instances, loads),
        "starts": start_rows(starts),
        "migrations": migration_rows(migrations),
    }


def look_here(services: Services) -> Sections:
    """What this process knows without asking anybody."""
    lanes = [lane for lane in services.table.lanes if lane.running or lane.waiting]
    requests = _requests(services)
    return {
        "models": model_rows(services.catalog.all_records),
        "progress": {
            "starts": progress_rows(services.progress.starts()),
            "migrations": progress_rows(services.progress.moves()),
        },
        "load": {
            "models": {lane.model: {"running": lane.running, "waiting": lane.waiting} for lane in lanes},
            "requests": requests[:REQUESTS_SHOWN],
            "more_requests": max(0, len(requests) - REQUESTS_SHOWN),
        },
        "health": {
            "postgres": services.health.postgres.say(),
            "temporal": services.health.temporal.say(),
        },
    }


def _requests(services: Services) -> Rows:
    """What an engine works on for this process, choice by choice; figures only, never what was asked."""
    to_unix_s = time.time() - time.monotonic()
    return [
        {
            "request_id": journal.request_id,
            "model": at.route.model,
            "instance_id": at.route.instance_id,
            "prompt_tokens": journal.prompt_tokens,
            "tokens": journal.given if journal.max_tokens else 0,
            "max_tokens": journal.max_tokens,
            # To the second: the clocks' difference wavers, and an unchanged section is not sent.
            "since_unix_s": round(to_unix_s + at.since_s),
            "moves": journal.moves,
            "resumes": journal.resumes,
        }
        for journal, at in services.dispatcher.at_engines.items()
    ]
