"""The embedded Postgres through what happens to it: kills, stale files, other users' directories."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from firstlight.domain.errors import LaunchError
from firstlight.launcher.embedded import postgres_binaries
from firstlight.launcher.embedded.postgres import EmbeddedPostgres
from firstlight.launcher.embedded.postgres_binaries import find_binaries
from firstlight.launcher.embedded.process_exit import wait_for_exit
from firstlight.launcher.embedded.server_account import ServerAccount, account_for
from firstlight.launcher.embedded.socket_directory import runtime_directory


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Under a directory that is its owner's only, and deeper than a socket's path may be."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    server = EmbeddedPostgres(private / ("deep" * 20) / ("deeper" * 10))
    try:
        yield server
    finally:
        server.stop()


def ask(url: str, query: str = "SELECT 1") -> object:
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        answer = connection.execute(query)  # type: ignore[arg-type]
        row = answer.fetchone() if answer.description else None
        return row[0] if row else None


def until(holds: Callable[[], bool], *, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.01)


def test_it_starts_attaches_stops_and_keeps_what_was_written(server: EmbeddedPostgres) -> None:
    url = server.start()
    pid = server.pid
    assert pid is not None and server.start() == url and server.pid == pid
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    assert server.pid is None
    server.stop()
    assert ask(server.start(), "SELECT answer FROM kept") == 42


def test_nobody_else_can_reach_it(server: EmbeddedPostgres) -> None:
    url = server.start()
    sockets = Path(make_url(url).query["host"])  # type: ignore[arg-type]
    assert sockets.stat().st_mode & 0o777 == 0o700
    assert ask(url, "SHOW listen_addresses") == ""
    assert len(os.fsencode(sockets / ".s.PGSQL.5432")) < 100


def test_a_killed_server_comes_back_with_its_data(server: EmbeddedPostgres) -> None:
    url = server.start()
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: server.pid is None)
    assert ask(server.start(), "SELECT answer FROM kept") == 42


def test_a_stale_pid_file_that_names_another_process_harms_nobody(server: EmbeddedPostgres) -> None:
    url = server.start()
    server.stop()
    data = server.log_path.parent / "data"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as bystander:
        (data / "postmaster.pid").write_text(f"{bystander.pid}\n{data}\n1\n5432\n/tmp\n\n")
        assert server.pid is None
        assert server.start() == url and ask(url) == 1
        assert server.pid != bystander.pid
        server.stop()
        assert bystander.poll() is None, "the process that has the pid now lives on"
        bystander.communicate(b"\n")


def test_eight_callers_at_once_get_one_server(server: EmbeddedPostgres) -> None:
    urls: list[str] = []
    pids: set[int | None] = set()

    def start() -> None:
        urls.append(server.start())
        pids.add(server.pid)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(urls) == 8 and len(set(urls)) == 1 and len(pids) == 1


def test_a_creation_cut_short_is_begun_anew(server: EmbeddedPostgres) -> None:
    unfinished = server.log_path.parent / "data.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    assert ask(server.start()) == 1


def test_a_socket_that_was_swept_away_is_made_again(server: EmbeddedPostgres) -> None:
    url = server.start()
    sockets = Path(make_url(url).query["host"])  # type: ignore[arg-type]
    shutil.rmtree(sockets.parent)
    assert server.start() == url and ask(url) == 1


def test_data_of_another_major_version_is_left_alone(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    version = server.log_path.parent / "data" / "PG_VERSION"
    version.write_text("12\n")
    with pytest.raises(LaunchError, match="written by Postgres 12"):
        server.start()
    version.write_text("18\n")
    assert ask(server.start()) == 1


def test_a_server_that_cannot_start_says_what_it_said(server: EmbeddedPostgres) -> None:
    server.start()
    server.stop()
    with (server.log_path.parent / "data" / "postgresql.conf").open("a") as configuration:
        configuration.write("no_such_setting = 1\n")
    with pytest.raises(LaunchError, match="no_such_setting"):
        server.start()


def test_a_directory_somebody_else_took_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    path = runtime_directory(data)
    path.rmdir()
    path.symlink_to(tmp_path)
    try:
        with pytest.raises(LaunchError, match="not a directory of ours"):
            runtime_directory(data)
    finally:
        path.unlink()


def test_programs_out_of_the_accounts_reach_are_copied_once(tmp_path: Path) -> None:
    account = account_for(tmp_path / "data")
    binaries = find_binaries(account, spare_folder=tmp_path)
    if account != ServerAccount():
        # A virtual environment in a home directory of root's is out of reach for `nobody`.
        package = Path(binaries.folder).parent.parent
        # pytest's own folders are closed to others, however many of them it has made one in another.
        for parent in (tmp_path, *tmp_path.parents):
            if parent == tmp_path or parent.name.startswith(("pytest-", "popen-")):
                parent.chmod(0o755)
        copied = postgres_binaries._copy(package, tmp_path)
        assert postgres_binaries._copy(package, tmp_path) == copied
        assert account.can_execute(copied / "pginstall" / "bin" / "initdb"), "with the libraries it needs"
    assert binaries.major_version(account) == "18"


async def test_its_end_is_noticed_at_once(server: EmbeddedPostgres) -> None:
    sockets = Path(make_url(await asyncio.to_thread(server.start)).query["host"])  # type: ignore[arg-type]
    waiting = asyncio.create_task(server.wait_exit())
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(waiting, 10)
    await asyncio.wait_for(wait_for_exit(pid), 1)
    await asyncio.to_thread(server.stop)
    assert not sockets.parent.exists(), "nothing is left in the temporary directory"
