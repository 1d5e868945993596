"""Today's workflow code takes the very steps that histories of every release recorded, in their order."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from firstlight.contracts.naming import COLD_START
from firstlight.contracts.starts import AbandonInput, ColdStartInput, ColdStartResult, PhaseSeconds
from workflows import control_calls
from workflows.registry import WORKFLOWS
from workflows.sandbox import runner

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*/*.json"))


def read(path: Path) -> WorkflowHistory:
    kept = json.loads(path.read_text())
    return WorkflowHistory.from_json(kept["workflow_id"], kept["history"])


def test_every_scenario_has_a_history() -> None:
    source = ast.parse((Path(__file__).parent / "record.py").read_text())
    [listed] = [
        node.value
        for node in ast.walk(source)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if node.target.id == "SCENARIOS"
    ]
    assert isinstance(listed, ast.Tuple)
    scenarios = {name.id for name in listed.elts if isinstance(name, ast.Name)}
    assert scenarios
    assert scenarios <= {path.stem for path in HISTORIES}


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_history_replays(path: Path) -> None:
    replayer = Replayer(workflows=WORKFLOWS, workflow_runner=runner())
    await replayer.replay_workflow(read(path))


@workflow.defn(name=COLD_START)
class Tampered:
    """A ColdStart whose first step is another activity: what a careless edit amounts to."""

    @workflow.run
    async def run(self, request: ColdStartInput) -> ColdStartResult:
        await control_calls.abandon_start(AbandonInput(request.plan, "", ""))
        return ColdStartResult("", "", "", 1, PhaseSeconds())


async def test_changed_commands_are_caught() -> None:
    [path] = [path for path in HISTORIES if path.stem == "cold_start_from_ssd"][-1:]
    replayer = Replayer(workflows=[Tampered], workflow_runner=runner())
    with pytest.raises(NondeterminismError):
        await replayer.replay_workflow(read(path))
