"""Today's workflow code takes the very steps that histories of every release recorded, in their order."""

from __future__ import annotations

import ast
import base64
import json
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from firstlight.contracts.activities import ControlActivities, HostActivities
from firstlight.contracts.naming import COLD_START
from firstlight.contracts.starts import AbandonInput, ColdStartInput, ColdStartResult, PhaseSeconds
from firstlight.contracts.warmth import WarmthActivities
from workflows import control_calls
from workflows.registry import WORKFLOWS
from workflows.sandbox import runner

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*/*.json"))
ROOT = Path(__file__).parents[2]
RELEASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# Recorded by the code of this release, or of the one in the making.
TODAYS = [path for path in HISTORIES if path.parent.name == RELEASE]
# Names of workflow types, activities and patches that no history of today's holds: each with the reason.
NOT_RECORDED: dict[str, str] = {}


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
    missing = scenarios - {path.stem for path in TODAYS}
    assert not missing, f"run `python tests/replay/record.py` for {RELEASE}: it lacks {sorted(missing)}"


def test_every_workflow_activity_and_patch_is_in_a_history() -> None:
    recorded = {name for path in TODAYS for name in names_in(path)}
    unknown = registered() - recorded - NOT_RECORDED.keys()
    assert not unknown, f"add a scenario to record.py for {sorted(unknown)}"
    needless = NOT_RECORDED.keys() - (registered() - recorded)
    assert not needless, f"no exceptions any more: {sorted(needless)}"


def registered() -> set[str]:
    """Names of all that a workflow's history depends on."""
    workflows = {workflow._Definition.must_from_class(one).name for one in WORKFLOWS}
    activities = {
        activity._Definition.must_from_callable(getattr(contract, name)).name
        for contract in (ControlActivities, HostActivities, WarmthActivities)
        for name in contract.__abstractmethods__
    }
    assert None not in workflows | activities
    return {str(name) for name in workflows | activities} | patches()


def patches() -> set[str]:
    """The ids that workflow code hands to `workflow.patched`."""
    found = set()
    for path in (ROOT / "workflows").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "workflow.patched":
                [constant] = node.args
                assert isinstance(constant, ast.Name), f"{path.name}: name the patch by a constant"
                found.add(getattr(import_module(f"workflows.{path.stem}"), constant.id))
    assert found
    return found


def names_in(path: Path) -> set[str]:
    """The workflow type, the activities and the patches of one history."""
    found = set()
    for event in json.loads(path.read_text())["history"]["events"]:
        begun = event.get("workflowExecutionStartedEventAttributes", {})
        scheduled = event.get("activityTaskScheduledEventAttributes", {})
        marked = event.get("markerRecordedEventAttributes", {})
        found |= {kind["name"] for kind in (begun.get("workflowType"), scheduled.get("activityType")) if kind}
        if marked.get("markerName") == "core_patch":
            [payload] = marked["details"]["patch-data"]["payloads"]
            found.add(json.loads(base64.b64decode(payload["data"]))["id"])
    return found


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
