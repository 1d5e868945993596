"""One Postgres server per state directory, started, attached to and stopped by whoever needs it.

The server is its own daemon: it outlives a launcher that is killed, and the next one attaches to it. Nobody
but this machine's user (and root) can reach it: no TCP, a socket in a 0700 directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

from firstlight.domain.errors import DiskFull, FirstlightError, LaunchError
from firstlight.launcher.embedded.last_words import read_from, reason_of, size_of
from firstlight.launcher.embedded.postgres_binaries import PostgresBinaries, find_binaries
from firstlight.launcher.embedded.postmaster import drop_stale_files, running_postmaster
from firstlight.launcher.embedded.process_exit import wait_for_exit
from firstlight.launcher.embedded.server_account import ServerAccount, account_for
from firstlight.launcher.embedded.socket_directory import remove_if_empty, runtime_directory, socket_directory
from firstlight.launcher.machine_checks import disk_full, is_about_space

DATABASE = "firstlight"
MAX_CONNECTIONS = 200
# initdb writes about 40 MB, and the server needs as much again for its write-ahead log.
NEEDED_BYTES = 150 << 20
START_TIMEOUT_S = 120
# pg_isready: the server is there and refuses connections for now.
_STARTING_UP = 1


class EmbeddedPostgres:
    """The server of `state_dir`/postgres. `start` is idempotent and safe from many processes at once."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir.resolve() / "postgres"
        self._data = self._folder / "data"
        self._log = self._folder / "server.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None when it does not run."""
        postmaster = running_postmaster(self._data)
        return postmaster.pid if postmaster else None

    @property
    def log_path(self) -> Path:
        return self._log

    def start(self) -> str:
        """Start the server, or attach to the one that runs, and return its SQLAlchemy URL.

        The first start creates the data directory. Raises: LaunchError, DiskFull.
        """
        with self._locked():
            server = self._server()
            try:
                if not self._data.exists():
                    server.create_data()
                server.check_version()
                if not server.is_serving():
                    server.start()
                _create_database(server.sockets)
            except FirstlightError:
                if self.pid is None:
                    remove_if_empty(server.sockets.parent)
                raise
        return database_url(server.sockets)

    def stop(self) -> None:
        """Stop the server, whoever started it; its clients are disconnected. Idempotent."""
        if not self._data.exists():
            return
        with self._locked():
            server = self._server()
            server.stop()
            # A killed server has left its socket and pid file.
            drop_stale_files(self._data, server.sockets)
            remove_if_empty(server.sockets.parent)

    def _server(self) -> _Server:
        account = account_for(self._data)
        runtime = runtime_directory(self._data)
        sockets = socket_directory(runtime, account)
        binaries = find_binaries(account, spare_folder=runtime)
        return _Server(binaries, account, self._data, self._log, sockets)

    async def wait_exit(self) -> None:
        """Return when the server is not running (any more)."""
        if (pid := self.pid) is not None:
            await wait_for_exit(pid)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder.parent / ".postgres.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise LaunchError(f"cannot keep Postgres in {self._folder}: {error.strerror}") from error
        try:
            # Held while the server is created, started or stopped, not while it runs.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


class _Server:
    """The steps, each done by Postgres' own programs as the server's account."""

    def __init__(
        self, binaries: PostgresBinaries, account: ServerAccount, data: Path, log: Path, sockets: Path
    ) -> None:
        self._binaries = binaries
        self._account = account
        self._data = data
        self._log = log
        self.sockets = sockets

    def create_data(self) -> None:
        """initdb under another name, renamed when whole: a crash halfway leaves nothing that looks usable."""
        folder = self._data.parent
        if shutil.disk_usage(folder).free < NEEDED_BYTES:
            raise disk_full(f"Postgres needs {NEEDED_BYTES >> 20} MB in {folder}, which has less")
        self._account.own(folder)
        folder.chmod(0o700)
        unfinished = folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._account.own(unfinished)
        done = self._run(
            "initdb", "-D", self._path(unfinished), "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C", "--no-instructions", directory=unfinished,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise self._failure("Postgres could not create its data directory", done.stderr or done.stdout)
        unfinished.rename(self._data)

    def check_version(self) -> None:
        """Raises: LaunchError when the data was written by another major version, or is none."""
        try:
            written_by = (self._data / "PG_VERSION").read_text().strip()
        except OSError as error:
            raise LaunchError(
                f"{self._data} is not a Postgres data directory ({error.strerror}: PG_VERSION): restore it, "
                "or choose another FIRSTLIGHT_STATE_DIR"
            ) from error
        ours = self._binaries.major_version(self._account)
        if written_by != ours:
            raise LaunchError(
                f"{self._data} was written by Postgres {written_by}, this is Postgres {ours}: dump it with "
                f"that version and load it here, or choose another FIRSTLIGHT_STATE_DIR"
            )

    def is_serving(self) -> bool:
        """Whether the running server, if any, answers on our socket; one that cannot be reached is ended."""
        postmaster = running_postmaster(self._data)
        if postmaster is None:
            return False
        if postmaster.socket_directory == self.sockets and self._answers():
            return True
        self.stop()
        return False

    def start(self) -> None:
        drop_stale_files(self._data, self.sockets)
        log_begins = size_of(self._log)
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "max_connections": str(MAX_CONNECTIONS),
        }
        done = self._run(
            "pg_ctl", "start", "-w", "-t", str(START_TIMEOUT_S), "-D", self._path(self._data),
            # By a path relative to the data directory, which the account can always take.
            "-l", f"../{self._log.name}",
            "-o", " ".join(f"-c {name}='{value}'" for name, value in options.items()),
            directory=self._data,
        )  # fmt: skip
        if done.returncode != 0 or running_postmaster(self._data) is None:
            raise self._failure("Postgres did not start", read_from(self._log, log_begins) or done.stderr)

    def stop(self) -> None:
        if running_postmaster(self._data) is None:
            return
        for mode in ("fast", "immediate"):
            done = self._run(
                "pg_ctl", "stop", "-w", "-t", "30", "-m", mode, "-D", self._path(self._data),
                directory=self._data,
            )  # fmt: skip
            if done.returncode == 0 or running_postmaster(self._data) is None:
                return
        raise self._failure("Postgres did not stop", done.stderr or done.stdout)

    def _answers(self) -> bool:
        """Wait out a start or a recovery under way (1); anything else but 0 is no answer."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            code = self._run("pg_isready", "-q", "-h", str(self.sockets), "-U", "postgres").returncode
            if code != _STARTING_UP:
                return code == 0
            time.sleep(0.05)
        return False

    def _path(self, directory: Path) -> str:
        """How the server names its working directory.

        An account we switched to may not be allowed to pass the directories above it (a state directory
        is for its owner only). It needs no path: its working directory was entered before the switch.
        """
        is_switched = self._account.user_id is not None and sys.platform.startswith("linux")
        return "/proc/self/cwd" if is_switched else str(directory)

    def _run(
        self, program: str, *arguments: str, directory: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        argv = [self._binaries.program(program), *arguments]
        return self._account.run(argv, directory=directory or Path("/"), timeout_s=START_TIMEOUT_S + 30)

    def _failure(self, what: str, told: str) -> LaunchError | DiskFull:
        if is_about_space(told):
            return disk_full(f"{what}: the disk of {self._data.parent} is full")
        return LaunchError(
            f"{what}: {reason_of(told)} (its log is {self._log}); if its files are damaged, restore "
            f"{self._data}, or choose another FIRSTLIGHT_STATE_DIR"
        )


def database_url(sockets: Path, database: str = DATABASE) -> str:
    """One URL for sync and async use."""
    return f"postgresql+psycopg://postgres@/{database}?host={quote(str(sockets), safe='')}"


def _create_database(sockets: Path) -> None:
    try:
        with psycopg.connect(
            host=str(sockets), user="postgres", dbname="postgres", autocommit=True, connect_timeout=60
        ) as connection:
            found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
            if found is None:
                connection.execute(f'CREATE DATABASE "{DATABASE}"')
    except psycopg.Error as error:
        if isinstance(error, psycopg.errors.DiskFull) or is_about_space(str(error)):
            raise disk_full("the disk of the embedded Postgres is full") from error
        sentence = str(error).strip().partition("\n")[0]
        raise LaunchError(f"the embedded Postgres does not take commands: {sentence}") from error
