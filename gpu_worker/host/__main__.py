"""`python -m gpu_worker.host --config-json TEXT | --config FILE`: supervise one GPU host until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from firstlight.domain.errors import FirstlightError
from firstlight.rpc.identity import assume
from firstlight.telemetry import tracing
from gpu_worker.host.config import HostConfig
from gpu_worker.host.supervisor import Supervisor
from gpu_worker.store.disk import hold
from gpu_worker.store.process_log import log_process

log = logging.getLogger("host")


async def supervise(config: HostConfig) -> None:
    """Run the host until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    supervisor = Supervisor(config)
    starting = asyncio.get_running_loop().create_task(supervisor.start())
    waiting = asyncio.get_running_loop().create_task(ended.wait())
    try:
        await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        await waiting
    finally:
        starting.cancel()
        waiting.cancel()
        await asyncio.gather(starting, waiting, return_exceptions=True)
        await supervisor.stop()
        log.info("stopped")


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_worker.host", description=__doc__)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--config-json")
    given.add_argument("--config", type=Path)
    arguments = parser.parse_args()
    try:
        config = HostConfig.from_json(arguments.config_json or arguments.config.read_text())
        log_process("host", config.host_id, config.log_format)
        tracing.start("gpu-host", instance=config.host_id)
        assume(config.tls_dir, may_be_plain=config.may_be_plain)
        state_dir = Path(config.state_dir)
        state_dir.mkdir(parents=True, exist_ok=True)
        hold(state_dir / "host.lock", what=f"the state directory {state_dir}")
        asyncio.run(supervise(config))
    except FirstlightError as failure:
        print(f"{failure.code}: {failure.message}", file=sys.stderr)
        return 2
    finally:
        tracing.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
