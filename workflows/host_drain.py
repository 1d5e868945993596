"""HostDrain: moves everything off one host, instance by instance, until none is left or it is called off.

Each instance moves by a LiveMigration of its own, so that one that fails does not hold up the others; what
has nowhere to go is tried again until room appears or it ends by itself.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow

from firstlight.contracts.draining import DrainInput, DrainResult
from firstlight.contracts.naming import HOST_DRAIN
from workflows import control_calls
from workflows.story import Story

# Nobody waits for this: a busy host is looked at again after so long.
LOOK_AGAIN = timedelta(seconds=2)
LOOKS_PER_RUN = 500


@workflow.defn(name=HOST_DRAIN)
class HostDrain:
    def __init__(self) -> None:
        self._story = Story()
        self._told = ""

    @workflow.run
    async def run(self, request: DrainInput) -> DrainResult:
        begun = 0
        try:
            for _ in range(LOOKS_PER_RUN):
                receipt = await control_calls.move_off(request)
                begun += receipt.begun
                self._tell(
                    f"{receipt.left} instances left, {receipt.moving} on their way"
                    + "".join(f"; {reason}" for reason in receipt.stuck)
                )
                if receipt.left == 0:
                    self._story.end("drained")
                    return DrainResult(host_id=request.host_id, begun=begun)
                await workflow.sleep(LOOK_AGAIN, summary="look again")
        except asyncio.CancelledError:
            self._story.end("called off")
            raise
        workflow.continue_as_new(request)
        raise AssertionError("a run that is continued as new ends there")

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            self._story.tell(line)
