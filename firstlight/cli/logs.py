"""`firstlight logs`: what the roles of the local run have written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from firstlight.cli.options import AsJson
from firstlight.domain.errors import LaunchError


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: firstlight logs · firstlight logs api -f · firstlight logs --json")(logs)


def logs(
    role: Annotated[
        str | None, typer.Argument(help="api, control-worker, a host id …; all without one.")
    ] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines are written.")] = False,
    lines: Annotated[int, typer.Option("-n", min=1, help="Lines to begin with.")] = 40,
    as_json: AsJson = False,
) -> None:
    """Show the logs of the roles that run on this machine."""
    from firstlight.launcher.log_files import tail

    paths = _paths(role)
    for path in paths:
        for line in tail(path, lines).splitlines():
            _print(path, line, many=len(paths) > 1, as_json=as_json)
    if follow:
        _follow(paths, as_json=as_json)


def _paths(role: str | None) -> list[Path]:
    from firstlight.launcher.log_files import logs_dir
    from firstlight.settings import read_settings

    folder = logs_dir(read_settings().state_dir)
    found = sorted(folder.rglob("*.log"))
    if role is not None:
        found = [path for path in found if _name(folder, path) == role or path.stem == role]
    if not found:
        what = f"role {role!r} has" if role else "this run has"
        raise LaunchError(
            f"{what} no log under {folder}; `firstlight logs` without a role shows all there are"
        )
    return found


def _name(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _print(path: Path, line: str, *, many: bool, as_json: bool) -> None:
    """One line a line of the log; as JSON one object each, which `-f` can go on with."""
    if as_json:
        print(json.dumps({"role": path.stem, "line": line}), flush=True)
    else:
        print(f"{path.stem:>16} | {line}" if many else line, flush=True)


def _follow(paths: list[Path], *, as_json: bool) -> None:
    ends = {path: path.stat().st_size for path in paths}
    while True:
        for path, end in ends.items():
            ends[path] = _print_from(path, end, many=len(paths) > 1, as_json=as_json)
        time.sleep(0.2)


def _print_from(path: Path, start: int, *, many: bool, as_json: bool) -> int:
    """Print whole lines from `start` on; returns where the next ones begin."""
    if not path.exists():
        return start
    with path.open("rb") as log:
        # A log that became shorter was begun anew.
        log.seek(start if path.stat().st_size >= start else 0)
        fresh = log.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        for line in whole.decode(errors="replace").splitlines():
            _print(path, line, many=many, as_json=as_json)
        return log.tell() - len(fresh) + len(whole)
