"""Would the installed workflow code take the steps that were recorded? Reads, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.client import Client
from temporalio.worker import Replayer

from firstlight.recovery.found import FoundWorkflow
from firstlight.recovery.report import How, Report, Verdict
from workflows.registry import WORKFLOWS
from workflows.sandbox import runner


async def verify(client: Client, found: FoundWorkflow, *, workflows: Sequence[type] = WORKFLOWS) -> Report:
    history = await client.get_workflow_handle(found.workflow_id, run_id=found.run_id).fetch_history()
    replayer = Replayer(
        workflows=workflows,
        workflow_runner=runner(),
        namespace=client.namespace,
        data_converter=client.data_converter,
    )
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    failure = result.replay_failure
    events = f"{len(history.events)} events"
    return Report(
        workflow_id=found.workflow_id,
        how=How.VERIFY,
        verdict=Verdict.SAME if failure is None else Verdict.DIFFERS,
        sentence=(
            f"today's code takes the recorded steps ({events})"
            if failure is None
            else f"today's code takes other steps ({events}): {failure}"
        ),
        code="" if failure is None else type(failure).__name__,
    )
