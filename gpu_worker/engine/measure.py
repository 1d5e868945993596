"""`python -m gpu_worker.engine.measure --store-socket PATH …`: what an engine takes. Prints only.

Needs a running store that holds the checkpoint in DRAM. Times are of this process's clock.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from firstlight.rpc.engine_pb2 import GenerateRequest
from gpu_worker.engine.client import EngineHandle, Nursery
from gpu_worker.engine.control import AttachCommand, EngineConfig, PrepareCommand

ROUNDS = 5
NEW_TOKENS = 32
PROMPT_TOKENS = 32


async def measure(*, store_socket: str, checkpoint_id: str, checkpoint_dir: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        begun_s = time.monotonic()
        nursery = await Nursery.start(socket_path=Path(directory) / "engines.sock")
        try:
            await nursery.wait_ready()
            print(f"zygote start → ready      {time.monotonic() - begun_s:8.2f} s")
            config = EngineConfig(store_socket=store_socket)
            for is_prepared in (False, True):
                prepared_dir = checkpoint_dir if is_prepared else None
                await _attaches(nursery, config, checkpoint_id, prepared_dir)
            await _throughput(nursery, config, checkpoint_id)
        finally:
            await nursery.close()


async def _attaches(
    nursery: Nursery, config: EngineConfig, checkpoint_id: str, prepared_dir: str | None
) -> None:
    spare_s, attach_s, skeleton_s, bind_s, first_s = [], [], [], [], []
    for _ in range(ROUNDS):
        begun_s = time.monotonic()
        engine = await nursery.spawn(config)
        await engine.wait_spare()
        spare_s.append(time.monotonic() - begun_s)
        if prepared_dir is not None:
            await engine.prepare(PrepareCommand(checkpoint_id=checkpoint_id, checkpoint_dir=prepared_dir))
        begun_s = time.monotonic()
        attached = await engine.attach(_command(checkpoint_id))
        attach_s.append(time.monotonic() - begun_s)
        skeleton_s.append(attached.skeleton_s)
        bind_s.append(attached.bind_s)
        first_s.append(await _first_token(attached.endpoint))
        await engine.stop()
    _show("fork → spare", spare_s)
    how = "skeleton ready" if prepared_dir is not None else "cold"
    for name, times_s in (
        (f"attach, {how}", attach_s),
        ("  of it skeleton", skeleton_s),
        ("  of it bind", bind_s),
        (f"first of 1 + {PROMPT_TOKENS} tokens", first_s),
    ):
        _show(name, times_s)


async def _first_token(endpoint: str) -> float:
    async with Channels() as channels:
        client = InferenceClient(channels, endpoint)
        await client.status()
        begun_s = time.monotonic()
        async for _ in client.generate(_request(1)):
            break
        return time.monotonic() - begun_s


async def _throughput(nursery: Nursery, config: EngineConfig, checkpoint_id: str) -> None:
    engine: EngineHandle = await nursery.spawn(config)
    attached = await engine.attach(_command(checkpoint_id))
    async with Channels() as channels:
        client = InferenceClient(channels, attached.endpoint)
        for requests in (1, 4, 8):
            times_s = [await _batch(client, requests) for _ in range(2)]
            rate = requests * (NEW_TOKENS - 1) / min(times_s)
            print(f"{requests} requests                {rate:8.1f} tokens/s")


async def _batch(client: InferenceClient, requests: int) -> float:
    """Seconds from the last request's first token to the end of all."""
    firsts: list[float] = []

    async def one() -> None:
        is_first = True
        async for chunk in client.generate(_request(NEW_TOKENS)):
            if is_first and chunk.has_token:
                firsts.append(time.monotonic())
                is_first = False

    await asyncio.gather(*(one() for _ in range(requests)))
    return time.monotonic() - max(firsts)


def _command(checkpoint_id: str) -> AttachCommand:
    return AttachCommand(
        instance_id="measured", epoch=1, model="measured", checkpoint_id=checkpoint_id, max_concurrency=8
    )


def _request(new_tokens: int) -> GenerateRequest:
    prompt = [100 + index for index in range(PROMPT_TOKENS)]
    return GenerateRequest(epoch=1, prompt_token_ids=prompt, max_tokens=new_tokens, ignore_eos=True)


def _show(name: str, times_s: Sequence[float]) -> None:
    best, middle, worst = min(times_s), statistics.median(times_s), max(times_s)
    print(f"{name:24}  {middle * 1e3:8.1f} ms  [{best * 1e3:.1f} to {worst * 1e3:.1f}]")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.engine.measure")
    parser.add_argument("--store-socket", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--checkpoint-dir", required=True)
    arguments = parser.parse_args()
    asyncio.run(
        measure(
            store_socket=arguments.store_socket,
            checkpoint_id=arguments.checkpoint,
            checkpoint_dir=arguments.checkpoint_dir,
        )
    )


if __name__ == "__main__":
    main()
