"""Regenerate the committed protobuf modules and stubs: `python -m firstlight.rpc.generate [--check]`.

`--check` writes nothing and exits 1 when a committed file differs from what the .proto files give.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROTOS = ("store", "engine", "host")
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(destination: Path) -> None:
    """Write the modules of every .proto under `destination`/firstlight/rpc. Raises: RuntimeError."""
    import os

    from grpc_tools import protoc

    # protoc finds its mypy plug-ins on PATH, beside the interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for name in PROTOS:
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={ROOT}",
                f"--python_out={destination}",
                f"--grpc_python_out={destination}",
                f"--mypy_out=quiet:{destination}",
                f"--mypy_grpc_out=quiet:{destination}",
                f"firstlight/rpc/{name}.proto",
            ]
        )
        if status != 0:
            raise RuntimeError(f"protoc failed on {name}.proto")


def stale_files() -> list[str]:
    """Names of committed generated files that differ from a fresh generation."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / "firstlight" / "rpc"
        names = [f"{proto}{suffix}" for proto in PROTOS for suffix in SUFFIXES]
        return [
            name
            for name in names
            if not (HERE / name).exists() or not filecmp.cmp(fresh / name, HERE / name, shallow=False)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        stale = stale_files()
        for name in stale:
            sys.stderr.write(f"stale: firstlight/rpc/{name}; run python -m firstlight.rpc.generate\n")
        return 1 if stale else 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        for file in sorted((Path(scratch) / "firstlight" / "rpc").iterdir()):
            shutil.copy(file, HERE / file.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
