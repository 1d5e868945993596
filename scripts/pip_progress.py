"""pip, told in one line that changes instead of hundreds that stay; all of it when it fails."""

import os
import re
import shutil
import subprocess
import sys

KEPT_LINES = 40
_SIZE = re.compile(r"Downloading (\S+) \(([\d.]+) (MB|GB)\)")


def run_pip(python: str, *arguments: str, is_quiet_on_failure: bool = False) -> int:
    """Run pip and show where it is. On failure its last lines go to stderr, unless told not to."""
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments, "--progress-bar", "raw"]
    environment = dict(os.environ, PIP_ROOT_USER_ACTION="ignore", PYTHONUNBUFFERED="1")
    kept: list[str] = []
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    ) as pip:
        assert pip.stdout is not None
        shown = Line()
        for line in pip.stdout:
            kept = [*kept[1 - KEPT_LINES :], line] if not line.startswith("Progress ") else kept
            shown.take(line.strip())
        shown.clear()
    if pip.returncode != 0 and not is_quiet_on_failure:
        sys.stderr.write("".join(kept))
    return pip.returncode


class Line:
    """What pip does now. Without a terminal only large downloads and the final step are told."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._doing = ""

    def take(self, line: str) -> None:
        progress = re.fullmatch(r"Progress (\d+) of (\d+)", line)
        if progress:
            done, total = (int(figure) / 1e6 for figure in progress.groups())
            self._show(f"{self._doing} {done:.0f} of {total:.0f} MB")
            return
        if line.startswith("Downloading "):
            self._doing = "downloading " + line.split()[1].rpartition("/")[2].partition("-")[0]
            large = _SIZE.match(line)
            if large and (large[3] == "GB" or float(large[2]) >= 50) and not self._is_terminal:
                sys.stdout.write(f"[setup]   {self._doing} ({large[2]} {large[3]})\n")
        elif line.startswith(("Collecting ", "Processing ", "Using cached ")):
            self._doing = "resolving " + line.split()[1].rpartition("/")[2]
        elif line.startswith("Building "):
            self._doing = "building " + line.partition("for ")[2].split(" ")[0]
        elif line.startswith("Installing collected packages"):
            self._doing = f"installing {line.count(',') + 1} packages"
        self._show(self._doing)

    def clear(self) -> None:
        self._show("")

    def _show(self, text: str) -> None:
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 12
            sys.stdout.write(f"\r\x1b[K[setup]   {text[:width]}" if text else "\r\x1b[K")
        sys.stdout.flush()
