"""`firstlight upgrade-database`: bring an existing database to the schema of this release."""

from __future__ import annotations

from typing import Annotated

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json
from firstlight.domain.errors import InvalidSettings


def register(app: typer.Typer) -> None:
    app.command(
        "upgrade-database",
        epilog="Example: firstlight upgrade-database --database-url postgresql://firstlight@db.internal/firstlight",
    )(upgrade_database)


def upgrade_database(
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", metavar="URL", help="Which database.  [FIRSTLIGHT_DATABASE_URL]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create or renew the tables of a cluster's database; once per release, before its roles start.

    `firstlight up` does it by itself.
    """
    from firstlight.database.schema import current_revision, upgrade
    from firstlight.settings import read_settings

    url = read_settings(database_url=database_url).database_url
    if url is None:
        raise InvalidSettings(
            "name the database with --database-url or FIRSTLIGHT_DATABASE_URL",
            setting="FIRSTLIGHT_DATABASE_URL",
        )
    before = current_revision(url)
    upgrade(url)
    now = current_revision(url)
    if as_json:
        print_json({"before": before, "now": now})
    elif before == now:
        console.print(f"the database is at revision {now} already")
    else:
        console.print(f"the database is at revision {now} now (it was {before or 'empty'})")
