"""Bringing a database's schema to the version this release needs.

Alembic is configured here and not by a file, so that an installed wheel can migrate. Synchronous: call it
from a thread where an event loop runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.pool import NullPool

from firstlight.database.failures import translated
from firstlight.domain.errors import InvalidSettings

# Any number does, as long as nothing else in the database takes the same advisory lock.
_LOCK = 0x66_69_72_73_74
_CONNECT_TIMEOUT_S = 10


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate forward. Idempotent, and safe from many processes at once: one migrates, the others wait.

    Raises: DatabaseUnavailable; InvalidSettings for a database of a newer release.
    """
    with _locked(url) as connection:
        command.upgrade(_config(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate back to `revision` ("base": to nothing, all data is lost). Raises: DatabaseUnavailable."""
    with _locked(url) as connection:
        command.downgrade(_config(connection), revision)


def current_revision(url: str) -> str | None:
    """The database's revision; None when it has no schema. Raises: DatabaseUnavailable."""
    with _connected(url) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def is_behind(url: str) -> bool:
    """Whether the database lacks tables this release needs. One of a newer release is not behind.

    Raises: DatabaseUnavailable.
    """
    current = current_revision(url)
    known = [script.revision for script in ScriptDirectory.from_config(_config(None)).walk_revisions()]
    return current is None or (current in known and current != head_revision())


def head_revision() -> str:
    """The revision this release needs."""
    head = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert head is not None, "there is at least one migration"
    return head


@contextmanager
def _locked(url: str) -> Iterator[Connection]:
    with _connected(url) as connection:
        # Of the session, not of a transaction: a migration may commit in between.
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        connection.commit()
        yield connection
        connection.commit()


@contextmanager
def _connected(url: str) -> Iterator[Connection]:
    # No pool: closing the connection is what gives the advisory lock back.
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": _CONNECT_TIMEOUT_S})
    try:
        with translated(), engine.connect() as connection:
            yield connection
    except CommandError as error:
        raise InvalidSettings(
            f"the database does not belong to this release of Firstlight: {error}",
            setting="FIRSTLIGHT_DATABASE_URL",
        ) from error
    finally:
        engine.dispose()


def _config(connection: Connection | None) -> Config:
    found = find_spec("migrations")
    assert found is not None and found.submodule_search_locations, "the migrations are part of the wheel"
    config = Config()
    config.set_main_option("script_location", next(iter(found.submodule_search_locations)).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
