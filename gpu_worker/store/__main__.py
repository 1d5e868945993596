"""`python -m gpu_worker.store --config-json TEXT`: the checkpoint store of one host, until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

from firstlight.domain.errors import FirstlightError
from firstlight.rpc.identity import assume
from firstlight.rpc.server import bind, new_server
from firstlight.rpc.store_pb2_grpc import add_StoreServicer_to_server
from firstlight.telemetry import tracing
from gpu_worker.store.config import StoreConfig
from gpu_worker.store.disk import write_atomically
from gpu_worker.store.gpu_handover import GpuHandover
from gpu_worker.store.native_memory import NativeMemory
from gpu_worker.store.probe import Prober
from gpu_worker.store.process_log import log_process
from gpu_worker.store.service import StoreService
from gpu_worker.store.store import Store

log = logging.getLogger("store")

# What bringing a checkpoint back is taken to cost until the SSD was measured.
GUESSED_SSD_BYTES_PER_S = 1.5e9


async def serve(config: StoreConfig) -> None:
    """Serve until SIGTERM or SIGINT. Raises: Conflict, InvalidSettings, StorageError."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    state_dir = Path(config.state_dir)
    state_dir.mkdir(parents=True, exist_ok=True)
    config.ssd_root.mkdir(parents=True, exist_ok=True)
    config.make_socket_dir()
    prober = Prober(ssd_root=config.ssd_root, state_dir=state_dir)
    memory = NativeMemory(
        size_bytes=config.dram_capacity_bytes,
        threads=config.load_threads,
        registered=config.registered_buffers,
    )
    log.info("arena bytes=%d kind=%s", memory.size_bytes, memory.kind)
    gpu = GpuHandover.of(config, memory.arena)
    store = Store(
        config=config,
        memory=memory,
        gpu=gpu,
        ssd_read_bytes_per_s=prober.figures.ssd_read_bytes_per_s or GUESSED_SSD_BYTES_PER_S,
        prober=prober,
    )
    server = new_server()
    add_StoreServicer_to_server(StoreService(store), server)
    try:
        address = bind(server, bind_address=config.bind_address, port=config.port)
        store.start(socket_path=config.socket_path, prefault=config.arena_prefault)
        await server.start()
        _publish(config, address, store.peer_endpoint)
        await ended.wait()
    finally:
        await server.stop(grace=0.2)
        await store.close()


def _publish(config: StoreConfig, address: str, peer_endpoint: str) -> None:
    record = {
        "address": address,
        "socket": str(config.socket_path),
        "pid": os.getpid(),
        "peer_endpoint": peer_endpoint,
    }
    write_atomically(config.address_file, json.dumps(record))
    log.info("serving address=%s socket=%s peers=%s", address, config.socket_path, peer_endpoint or "none")


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_worker.store", description=__doc__)
    parser.add_argument("--config-json", required=True)
    arguments = parser.parse_args()
    try:
        config = StoreConfig.from_json(arguments.config_json)
        log_process("store", config.host_id, config.log_format)
        tracing.start("store", instance=config.host_id)
        assume(config.tls_dir, may_be_plain=config.may_be_plain)
        asyncio.run(serve(config))
    except FirstlightError as failure:
        print(f"{failure.code}: {failure.message}", file=sys.stderr)
        return 2
    finally:
        tracing.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
