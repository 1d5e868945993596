"""A small world for workflows: real Temporal, the product's own workers, scripted activities behind them."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from scripted_activities import ScriptedControl, ScriptedHost
from scripted_warmth import ScriptedWarmth
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError

from firstlight.contracts import naming
from firstlight.contracts.naming import instance_workflow_id
from firstlight.contracts.starting import start_cold_start
from firstlight.contracts.starts import (
    CheckpointRef,
    ColdStartInput,
    ColdStartResult,
    PlannedEstimate,
    StartPlan,
)
from firstlight.launcher.control_worker import worker_of
from firstlight.launcher.host_agent import host_worker

_numbers = itertools.count(1)


@dataclass
class World:
    client: Client
    control: ScriptedControl
    hosts: dict[str, ScriptedHost]
    # Host ids are new in every test, so that what another one left behind finds no queue here.
    run_id: str
    started: list[str] = field(default_factory=list)
    warmth: ScriptedWarmth = field(default_factory=ScriptedWarmth)

    def host_id(self, letter: str) -> str:
        return f"host-{letter}-{self.run_id}"

    def host(self, letter: str = "a") -> ScriptedHost:
        return self.hosts[self.host_id(letter)]

    def plan(self, letter: str = "a", *, tier: str = "ssd", epoch: int = 7, instance: str = "") -> StartPlan:
        return StartPlan(
            decision_id=f"dec-{self.run_id}",
            instance_id=instance or f"ins-{self.run_id}",
            epoch=epoch,
            host_id=self.host_id(letter),
            gpu_indices=[0],
            model="smollm2",
            checkpoint=CheckpointRef(
                checkpoint_id="smollm2@abcd1234",
                source="file:///models/smollm2",
                dtype="float32",
                size_bytes=540_000_000,
                manifest_digest="" if tier == "remote" else "d" * 64,
            ),
            estimate=PlannedEstimate(
                queue_s=0.0,
                download_s=4.0 if tier == "remote" else 0.0,
                load_s=0.3,
                attach_s=0.1,
                control_s=0.05,
                tier=tier,
            ),
            max_concurrency=8,
            keep_alive_s=300.0,
            decided_at_unix_s=time.time(),
        )

    async def start(self, plan: StartPlan, *, max_plans: int = 3) -> WorkflowHandle[Any, ColdStartResult]:
        table = "| host | total s |\n|---|--:|\n| host-a | 0.45 |"
        request = ColdStartInput(plan=plan, max_plans=max_plans, candidates_markdown=table)
        handle = await start_cold_start(self.client, request)
        self.started += [handle.id, instance_workflow_id(plan.instance_id)]
        return handle

    async def status(self, workflow_id: str) -> WorkflowExecutionStatus | None:
        try:
            return (await self.client.get_workflow_handle(workflow_id).describe()).status
        except RPCError:
            return None

    async def entered(self, handle: WorkflowHandle[Any, Any], phase: str, *, within_s: float = 15.0) -> None:
        """Wait until the workflow has taken the step that says so; fails at the deadline."""
        deadline_s = time.monotonic() + within_s
        while (await handle.describe()).typed_search_attributes.get(naming.PHASE) != phase:
            assert time.monotonic() < deadline_s, f"not {phase} within {within_s} s"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def world(client: Client, *, hosts: str = "ab") -> AsyncIterator[World]:
    """Workers for the control plane and the hosts of these letters; other hosts exist in name only."""
    run_id = f"{os.getpid()}-{next(_numbers)}"
    made = World(client, ScriptedControl(), {}, run_id)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(worker_of(client, made.control, made.warmth))
        for letter in hosts:
            host = ScriptedHost(made.host_id(letter))
            made.hosts[host.host_id] = host
            await stack.enter_async_context(host_worker(client, host.host_id, host))
        try:
            yield made
        finally:
            for workflow_id in made.started:
                await _end(client, workflow_id)


async def _end(client: Client, workflow_id: str) -> None:
    try:
        await client.get_workflow_handle(workflow_id).terminate("test is over")
    except RPCError:
        return


async def eventually(is_so: Callable[[], object], *, within_s: float = 15.0) -> None:
    """Wait for a condition; fails at the deadline."""
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s, f"not so within {within_s} s"
        await asyncio.sleep(0.02)
