"""The sandbox that workflow code runs in: Temporal's own, with our pure packages passed through.

Contracts and domain hold values and pure functions only; importing them anew for every run would cost
a start more than all its workflow code does.
"""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions


def runner() -> SandboxedWorkflowRunner:
    restrictions = SandboxRestrictions.default.with_passthrough_modules(
        "firstlight", "workflows.policies", "workflows.tables"
    )
    return SandboxedWorkflowRunner(restrictions=restrictions)
