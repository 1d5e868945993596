"""The sandbox that workflow code runs in: Temporal's own, with our modules passed through.

Importing the workflows anew for every run, as the sandbox would, took two thirds of the time between a
decision and the begin of its activity. What it would have caught, a call of a clock or of chance, is kept
out by tests/unit/test_workflows_are_deterministic.py instead.
"""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions


def runner() -> SandboxedWorkflowRunner:
    restrictions = SandboxRestrictions.default.with_passthrough_modules(
        "firstlight", "workflows", "opentelemetry"
    )
    return SandboxedWorkflowRunner(restrictions=restrictions)
