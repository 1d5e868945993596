"""Database failures as errors of our tree, so that none reaches a caller raw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from firstlight.domain.errors import DatabaseUnavailable, StorageError


@contextmanager
def translated() -> Iterator[None]:
    """Raises: DatabaseUnavailable when the database is away or busy, StorageError for what it refuses."""
    try:
        yield
    except IntegrityError as error:
        raise StorageError(
            f"the database refused an impossible row: {_sentence(error)}", constraint=constraint_of(error)
        ) from error
    except PoolTimeout as error:
        raise DatabaseUnavailable("all connections to the database are in use") from error
    except (OperationalError, InterfaceError) as error:
        raise DatabaseUnavailable(f"the database does not answer: {_sentence(error)}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseUnavailable("the connection to the database was lost") from error
        raise StorageError(f"the database refused: {_sentence(error)}") from error
    except SQLAlchemyError as error:
        raise StorageError(f"the database refused: {error}") from error


def constraint_of(error: IntegrityError) -> str:
    """Name of the constraint that was broken; empty if the database did not say."""
    diagnostic = getattr(error.orig, "diag", None)
    return str(getattr(diagnostic, "constraint_name", None) or "")


def _sentence(error: DBAPIError) -> str:
    """The driver's own first line, without the statement and its parameters, which may hold secrets."""
    lines = str(error.orig).strip().splitlines()
    return lines[0] if lines else type(error.orig).__name__
