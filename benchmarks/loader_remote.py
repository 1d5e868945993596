"""A checkpoint from a rate-limited S3 server into DRAM and onto the SSD, converted on its way.

    python -m benchmarks.loader_remote [--size-gib N] [--mib-per-s N] [--rounds N] [--json FILE]
                                       [--directory DIR]

A Hugging Face layout of random bf16 weights lies on a real S3 server behind a link of a known rate. A store
with a warm planner is asked to download it into DRAM. Timed from the request, on the store's ProgressBoard as
an engine sees it: until the embedding and the first layer are there, and until every byte is; then until the
SSD copy is published. The link's own time is what the same bytes take at its rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.loader_model import random_model, shape_for
from benchmarks.object_server import BUCKET, client_of, environment_of, object_server
from benchmarks.report import Reach, Report
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import StoreClient
from gpu_worker.engine.store_link import StoreLink
from gpu_worker.store.config import StoreConfig
from native_loader import open_checkpoint

GIB, MIB = 1 << 30, 1 << 20
CHECKPOINT = "remote@0123abcd"
PATIENCE_S = 120.0
FIRST_LAYER = "model.layers.0."
SHARD_BYTES = 512 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFigures:
    """One download. Times are seconds from the request; the link's are of the same bytes at its rate."""

    size_bytes: int
    link_bytes_per_s: float
    prefix_bytes: int
    prefix_s: float
    resident_s: float
    published_s: float
    store_cpu_s: float

    @property
    def prefix_ratio(self) -> float:
        """Until the first layer could be used, as a multiple of the link's own time for that prefix."""
        return self.prefix_s / (self.prefix_bytes / self.link_bytes_per_s)

    @property
    def resident_ratio(self) -> float:
        return self.resident_s / (self.size_bytes / self.link_bytes_per_s)

    @property
    def published_ratio(self) -> float:
        return self.published_s / (self.size_bytes / self.link_bytes_per_s)


def measure_remote(
    *, size_bytes: int, link_bytes_per_s: float, rounds: int, directory: Path
) -> list[RemoteFigures]:
    """One figure a round, each with a store of its own on an empty SSD. Raises: RuntimeError."""
    with tempfile.TemporaryDirectory(dir=directory, prefix="remote-") as scratch:
        root = Path(scratch)
        pool_bytes = size_bytes * 5 // 4 + 64 * MIB
        with object_server(root / "s3") as upstream:
            _upload(upstream, root / "source", size_bytes)
            with _link(upstream, link_bytes_per_s) as endpoint:
                return [
                    asyncio.run(_round(root / f"round-{number}", endpoint, link_bytes_per_s, pool_bytes))
                    for number in range(rounds)
                ]


def add_to(report: Report, figures: list[RemoteFigures]) -> None:
    """The two figures of the loader's remote edge."""
    prefix, resident = (
        median(one.prefix_ratio for one in figures),
        median(one.resident_ratio for one in figures),
    )
    report.reach += [
        Reach("remote → first layer usable, of the link's time", prefix, "<= 1.1", prefix <= 1.1),
        Reach("remote → all resident, of the link's time", resident, "<= 1.05", resident <= 1.05),
    ]
    report.trials += [
        asdict(one)
        | {
            "prefix_ratio": one.prefix_ratio,
            "resident_ratio": one.resident_ratio,
            "published_ratio": one.published_ratio,
        }
        for one in figures
    ]


def _upload(endpoint: str, folder: Path, size_bytes: int) -> None:
    random_model(shape_for(size_bytes), seed=1).save_pretrained(folder, max_shard_size=SHARD_BYTES)
    # As large as a real one, and with no meaning: nobody tokenizes here.
    (folder / "tokenizer.json").write_text(json.dumps({"filler": "x" * (2 * MIB)}))
    client = client_of(endpoint)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            client.put(f"model/{path.name}", file)
    shutil.rmtree(folder)


@contextmanager
def _link(upstream: str, bytes_per_s: float) -> Iterator[str]:
    """In a process of its own: it must not share the interpreter with what is measured."""
    argv = [
        sys.executable,
        "-m",
        "benchmarks.rate_limited_proxy",
        upstream,
        "--bytes-per-s",
        str(bytes_per_s),
    ]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


async def _round(state: Path, endpoint: str, link_bytes_per_s: float, pool_bytes: int) -> RemoteFigures:
    state.mkdir()
    config = StoreConfig(
        host_id="bench-remote",
        state_dir=str(state),
        ssd_capacity_bytes=64 * GIB,
        dram_capacity_bytes=pool_bytes,
        planner_warm_after_s=0.0,
    )
    environment = os.environ | environment_of(endpoint)
    argv = [sys.executable, "-m", "gpu_worker.store", "--config-json", config.to_json()]
    log = (state / "store.log").open("wb")
    process = await asyncio.create_subprocess_exec(*argv, env=environment, stderr=log)
    try:
        await _until_said(state / "store.log", "arena resident", "planner warm")
        return await _download(config, process.pid, link_bytes_per_s)
    finally:
        process.terminate()
        await process.wait()
        log.close()
        shutil.rmtree(state / "ssd", ignore_errors=True)


async def _download(config: StoreConfig, pid: int, link_bytes_per_s: float) -> RemoteFigures:
    address = json.loads(config.address_file.read_text())["address"]
    link = await StoreLink.connect(str(config.socket_path))
    async with Channels() as channels:
        client = StoreClient(channels, address)
        cpu_s, began = _cpu_s(pid), time.monotonic()
        await client.prepare(checkpoint_id=CHECKPOINT, source=f"s3://{BUCKET}/model", dtype="bfloat16")
        pinned = await link.pin(CHECKPOINT, while_loading=True)
        checkpoint = open_checkpoint(pinned.directory)
        board = pinned.board
        if board is None:
            raise RuntimeError("the download was over before it could be watched")
        names = [entry.name for entry in checkpoint.manifest.tensors if entry.name.startswith(FIRST_LAYER)]
        prefix_bytes = checkpoint.manifest.prefix_bytes_for(names)
        exact_bytes = max(
            entry.offset + entry.size_bytes
            for entry in checkpoint.manifest.tensors
            if entry.name.startswith(FIRST_LAYER)
        )
        await asyncio.to_thread(board.wait_prefix, prefix_bytes, PATIENCE_S)
        prefix_s = time.monotonic() - began
        await asyncio.to_thread(board.wait_prefix, board.bytes_total, PATIENCE_S * 10)
        resident_s = time.monotonic() - began
        steps = client.download(checkpoint_id=CHECKPOINT, source=f"s3://{BUCKET}/model", dtype="bfloat16")
        async for _ in steps:
            pass
        await link.close()
        return RemoteFigures(
            size_bytes=checkpoint.manifest.size_bytes,
            link_bytes_per_s=link_bytes_per_s,
            prefix_bytes=exact_bytes,
            prefix_s=prefix_s,
            resident_s=resident_s,
            published_s=time.monotonic() - began,
            store_cpu_s=_cpu_s(pid) - cpu_s,
        )


async def _until_said(log: Path, *words: str) -> None:
    """What a host does once, long before a download: it is not part of one."""
    deadline = time.monotonic() + PATIENCE_S
    while not all(word in log.read_text() for word in words):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the store did not start: {log.read_text()[-2000:]}")
        await asyncio.sleep(0.05)


def _cpu_s(pid: int) -> float:
    """User and system time of the store itself; its planner is another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size-gib", type=float, default=2.4)
    parser.add_argument("--mib-per-s", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = Report("loader-remote")
    figures = measure_remote(
        size_bytes=int(arguments.size_gib * GIB),
        link_bytes_per_s=arguments.mib_per_s * MIB,
        rounds=arguments.rounds,
        directory=arguments.directory,
    )
    report.add("first layer usable, of the link's time", [one.prefix_ratio for one in figures], unit="×")
    report.add("all resident, of the link's time", [one.resident_ratio for one in figures], unit="×")
    report.add("published on SSD, of the link's time", [one.published_ratio for one in figures], unit="×")
    report.add("first layer usable", [one.prefix_s for one in figures], unit="s")
    report.add("all resident", [one.resident_s for one in figures], unit="s")
    per_gb = [one.store_cpu_s / one.size_bytes * 1e9 for one in figures]
    report.add("the store's CPU", per_gb, unit="s a GB")
    add_to(report, figures)
    report.print()
    if arguments.json:
        report.write(arguments.json)
    return 1 if report.has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
