"""What scenarios of several workflows have in common: how an instance comes up, is watched and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from scripted_activities import Outcome
from temporalio.client import WorkflowFailureError
from workflow_world import World, eventually

from firstlight.contracts import naming


async def instance(here: World) -> tuple[str, str]:
    """The workflow of an instance that is up and watched, and its id."""
    plan = here.plan()
    await (await here.start(plan)).result()
    await watched(here, 1)
    return naming.instance_workflow_id(plan.instance_id), plan.instance_id


async def watched(here: World, times: int) -> None:
    await eventually(lambda: len(here.host().script.requests("watch_instance")) == times)


async def for_ever(_: object) -> Outcome:
    await asyncio.Event().wait()
    raise AssertionError


async def ended(result: Awaitable[object]) -> None:
    try:
        await result
    except WorkflowFailureError:
        return
