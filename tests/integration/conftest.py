"""Real servers for integration tests: one Postgres and one Temporal per session, a database per test."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import make_url

from firstlight.database import schema
from firstlight.database.connection import Database
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from firstlight.launcher.embedded.temporal import EmbeddedTemporal

TEMPLATE = "template_firstlight"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A running server with its data in a temporary directory."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """URL of the server's own database, beside which TEMPLATE holds the schema and no rows."""
    url = postgres_server.start()
    execute(url, f'CREATE DATABASE "{TEMPLATE}"')
    schema.upgrade(with_database(url, TEMPLATE))
    return url


@pytest.fixture
def database_url(migrated_template: str) -> Iterator[str]:
    """A database of this test alone, migrated to the head."""
    with fresh_database(migrated_template) as url:
        yield url


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, pool_size=20)
    try:
        yield opened
    finally:
        await opened.close()


@pytest_asyncio.fixture(scope="session")
async def temporal_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedTemporal]:
    """A running server; its `address` is where clients connect."""
    server = EmbeddedTemporal(tmp_path_factory.mktemp("temporal"), 0, 0)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextmanager
def fresh_database(url: str) -> Iterator[str]:
    """A copy of TEMPLATE, dropped at the end, whoever is still connected."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    execute(url, f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}"')
    try:
        yield with_database(url, name)
    finally:
        execute(url, f'DROP DATABASE "{name}" WITH (FORCE)')


def with_database(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def execute(url: str, statement: str) -> None:
    """One statement outside any transaction."""
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(statement)
