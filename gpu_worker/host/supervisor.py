"""The parts of one host, put together, from start to a stop that leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import grpc

from firstlight.rpc.channels import Channels
from firstlight.rpc.host_pb2_grpc import add_HostServicer_to_server
from firstlight.rpc.server import bind, new_server
from gpu_worker.engine.control import EngineConfig, PrepareCommand
from gpu_worker.host.config import ChildConfig, HostConfig
from gpu_worker.host.devices import Gpu, devices, gpus_of_host, resolve_device
from gpu_worker.host.engines import Engines
from gpu_worker.host.fences import Fences
from gpu_worker.host.kept_process import KeptProcess
from gpu_worker.host.service import HostService
from gpu_worker.host.spares import Spares
from gpu_worker.host.store_process import StoreProcess
from gpu_worker.host.zygote import ZYGOTE, KeptZygote
from gpu_worker.store.disk import write_atomically

log = logging.getLogger("host")

SKELETONS = 8
SKELETON_INTERVAL_S = 1.0
STOP_GRACE_S = 3.0


class Supervisor:
    """One host. `start` returns when it serves; spares may still be on their way."""

    def __init__(self, config: HostConfig) -> None:
        self._config = config
        self._kind = resolve_device(config.device)
        has_gpus = self._kind != "cpu"
        store_config = replace(config.store_config(), cuda_library=config.cuda_library if has_gpus else "")
        self._checkpoints = store_config.ssd_root.absolute() / "checkpoints"
        self._socket_dir = store_config.socket_path.parent
        self._store_socket = str(store_config.socket_path)
        self.store = StoreProcess(store_config)
        self.zygote = KeptZygote(
            self._socket_dir,
            planner_socket=store_config.planner_socket_path,
            executable=(*ZYGOTE, "--host-id", config.host_id, "--log-format", config.log_format),
        )
        self.spares = Spares(
            zygote=self.zygote,
            devices=devices(self._kind, config.gpu_count),
            per_device=config.spares,
            engine_config=self._engine_config,
            store_ready=self.store.ready,
        )
        self.engines = Engines(
            spares=self.spares,
            fences=Fences(Path(config.state_dir) / "epochs.json"),
            device_kind=self._kind,
            gpu_count=config.gpu_count,
        )
        self._gpus: tuple[Gpu, ...] = ()
        self._children: list[KeptProcess] = []
        self._server: grpc.aio.Server | None = None
        self._channels = Channels()
        self._skeletons: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises: InvalidSettings when the port is taken or GPUs are missing, GpuUnavailable."""
        self._config.address_file.unlink(missing_ok=True)
        self._config.store_config().make_socket_dir()
        self.zygote.start()
        self.store.start()
        self.spares.start()
        # While the others start: a driver takes its time, too.
        self._gpus = await gpus_of_host(
            self._kind, gpu_count=self._config.gpu_count, library=self._config.cuda_library
        )
        host_address = await self._serve()
        await self.store.ready.wait()
        self._publish(host_address)
        self._start_children(host_address)
        self._skeletons = asyncio.get_running_loop().create_task(self._expect_skeletons())

    async def stop(self) -> None:
        """Children first, so that no new work comes; then engines, zygote and store."""
        self._config.address_file.unlink(missing_ok=True)
        # Those that were started: a stop may come before.
        stops_s = [child.stop_s for child in self._config.children]
        await asyncio.gather(
            *(child.stop(grace_s=stop_s) for child, stop_s in zip(self._children, stops_s, strict=False))
        )
        if self._skeletons is not None:
            self._skeletons.cancel()
            await asyncio.gather(self._skeletons, return_exceptions=True)
        await self.spares.stop()
        await self.engines.close(drain_timeout_s=self._config.drain_timeout_s)
        if self._server is not None:
            await self._server.stop(grace=0.5)
        await self.zygote.close()
        await self.store.stop(grace_s=STOP_GRACE_S)
        await self._channels.close()

    def _engine_config(self, device: str) -> EngineConfig:
        return EngineConfig(
            store_socket=self._store_socket,
            device=device,
            bind_address=self._config.bind_address,
            tls_dir=self._config.tls_dir,
            may_be_plain=self._config.may_be_plain,
            cuda_library=self._config.cuda_library,
        )

    async def _serve(self) -> str:
        service = HostService(
            host_id=self._config.host_id,
            gpu_count=self._config.gpu_count,
            gpus=self._gpus,
            engines=self.engines,
            spares=self.spares,
            checkpoints=self._checkpoints,
        )
        self._server = new_server()
        add_HostServicer_to_server(service, self._server)
        address = bind(self._server, bind_address=self._config.bind_address, port=self._config.host_port)
        await self._server.start()
        return address

    def _publish(self, host_address: str) -> None:
        assert self.store.address is not None, "start waits until the store serves"
        record = {
            "host_address": host_address,
            "store_address": self.store.address.address,
            "store_socket": self.store.address.socket,
            "pid": os.getpid(),
        }
        write_atomically(self._config.address_file, json.dumps(record))
        log.info("host serves id=%s address=%s", self._config.host_id, host_address)

    def _start_children(self, host_address: str) -> None:
        assert self.store.address is not None, "start waits until the store serves"
        names = {
            "{host_address}": host_address,
            "{store_address}": self.store.address.address,
            "{store_socket}": self.store.address.socket,
        }
        for child in self._config.children:
            self._children.append(_kept(child, names))
            self._children[-1].start()

    async def _expect_skeletons(self) -> None:
        """Tell the spares which models this host could be asked for, as that changes."""
        while True:
            found = (await self.store.checkpoint_ids(self._channels))[:SKELETONS]
            self.spares.expect(
                {
                    name: PrepareCommand(checkpoint_id=name, checkpoint_dir=str(self._checkpoints / name))
                    for name in found
                }
            )
            await asyncio.sleep(SKELETON_INTERVAL_S)


def _kept(child: ChildConfig, names: dict[str, str]) -> KeptProcess:
    argv = [_filled(argument, names) for argument in child.argv]
    env = {key: _filled(value, names) for key, value in child.env.items()}
    return KeptProcess(name=child.name, argv=lambda: argv, env=env)


def _filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text
