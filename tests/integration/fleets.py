"""Small fleets in a real database, and the steps of a start as the workflows would take them."""

from __future__ import annotations

import time

from firstlight.contracts.starts import StartPlan
from firstlight.database import hosts_repository, models_repository, starts_repository
from firstlight.database.connection import Database
from firstlight.database.records import HostRegistration, ModelRecord, ModelSpec, PlannedStart

LEASE_S = 60.0
DIGEST = "d" * 64


async def add_host(
    database: Database, host_id: str, *, gpu_count: int = 1, lease_s: float = LEASE_S, ssd_read: float = 1e9
) -> int:
    registration = HostRegistration(
        host_id=host_id,
        host_class="cpu-2c",
        host_address="127.0.0.1:7000",
        store_address="127.0.0.1:7001",
        gpu_count=gpu_count,
        gpu_memory_bytes=8 << 30,
        ssd_capacity_bytes=100 << 30,
        dram_capacity_bytes=16 << 30,
        ssd_read_bytes_per_s=ssd_read,
    )
    async with database.transaction() as session:
        return await hosts_repository.register_host(session, registration, lease_s=lease_s)


def spec(name: str, **changes: object) -> ModelSpec:
    values: dict[str, object] = {
        "name": name,
        "source": f"hf://example/{name}",
        "source_revision": "abcd1234",
        "checkpoint_id": f"{name}@abcd1234",
        "source_bytes": 500_000_000,
        "size_bytes": 1_000_000_000,
    }
    return ModelSpec(**{**values, **changes})  # type: ignore[arg-type]


async def add_model(database: Database, name: str, **changes: object) -> ModelRecord:
    async with database.transaction() as session:
        record, _ = await models_repository.create_model(session, spec(name, **changes))
        return record


async def plan(database: Database, model: str, **changes: object) -> PlannedStart:
    values: dict[str, object] = {
        "deadline_s": None,
        "may_wait": True,
        "request_id": f"request-{model}",
        "now_unix_s": time.time(),
    }
    return await starts_repository.plan_start(database, model=model, **{**values, **changes})  # type: ignore[arg-type]


async def placed(database: Database, model: str, **changes: object) -> StartPlan:
    planned = await plan(database, model, **changes)
    assert planned.plan is not None, planned.decision
    return planned.plan


async def publish(
    database: Database, start: StartPlan, *, digest: str = DIGEST, size: int = 1_100_000_000
) -> None:
    async with database.transaction() as session:
        await starts_repository.publish_route(
            session,
            instance_id=start.instance_id,
            epoch=start.epoch,
            endpoint=f"127.0.0.1:{9000 + start.epoch}",
            manifest_digest=digest,
            size_bytes=size,
        )


async def running(database: Database, model: str, **changes: object) -> StartPlan:
    """A start carried through to its route."""
    start = await placed(database, model, **changes)
    await publish(database, start)
    return start
