"""What crosses Temporal beside inputs: the id of the request that asked, and, where it is sent, its trace.

A request's id goes from whoever starts a workflow through it to its activities and child workflows, in
headers: no part of a history that a replay compares. Log lines of activities then carry it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from temporalio import activity, client, worker
from temporalio.api.common.v1 import Payload
from temporalio.client import Interceptor as ClientInterceptor
from temporalio.converter import PayloadConverter
from temporalio.worker import Interceptor as WorkerInterceptor
from temporalio.workflow import ActivityHandle, ChildWorkflowHandle

from firstlight.telemetry import tracing
from firstlight.telemetry.ids import REQUEST_ID, bind, bound

HEADER = "firstlight-request-id"
Headers = Mapping[str, Payload]


def interceptors() -> Sequence[ClientInterceptor]:
    """For a client; workers on it take them over by themselves."""
    if (tracer := tracing.tracer()) is None:
        return [RequestContext()]
    from temporalio.contrib.opentelemetry import TracingInterceptor

    return [TracingInterceptor(tracer), RequestContext()]


class RequestContext(ClientInterceptor, WorkerInterceptor):
    """Without a request at hand (a schedule, a host's own workflow) it adds nothing."""

    def intercept_client(self, next: client.OutboundInterceptor) -> client.OutboundInterceptor:
        return _Client(next)

    def intercept_activity(
        self, next: worker.ActivityInboundInterceptor
    ) -> worker.ActivityInboundInterceptor:
        return _Activity(next)

    def workflow_interceptor_class(
        self, input: worker.WorkflowInterceptorClassInput
    ) -> type[worker.WorkflowInboundInterceptor]:
        return _Workflow


class _Client(client.OutboundInterceptor):
    # Any: workflows of any type, as in the class it extends.
    async def start_workflow(self, input: client.StartWorkflowInput) -> client.WorkflowHandle[Any, Any]:
        if (request_id := bound().get(REQUEST_ID)) is not None:
            payload = PayloadConverter.default.to_payloads([request_id])[0]
            input.headers = {**input.headers, HEADER: payload}
        return await super().start_workflow(input)


class _Activity(worker.ActivityInboundInterceptor):
    async def execute_activity(self, input: worker.ExecuteActivityInput) -> Any:
        info = activity.info()
        bind(
            request_id=_request_id(input.headers),
            workflow_id=info.workflow_id or "",
            run_id=info.workflow_run_id or "",
            activity=info.activity_type,
        )
        return await super().execute_activity(input)


class _Workflow(worker.WorkflowInboundInterceptor):
    """Runs in the sandbox: hands on what the workflow was started with, and looks at nothing else."""

    def __init__(self, next: worker.WorkflowInboundInterceptor) -> None:
        super().__init__(next)
        self.headers: dict[str, Payload] = {}

    def init(self, outbound: worker.WorkflowOutboundInterceptor) -> None:
        super().init(_Commands(outbound, self))

    async def execute_workflow(self, input: worker.ExecuteWorkflowInput) -> Any:
        if HEADER in input.headers:
            self.headers = {HEADER: input.headers[HEADER]}
        return await super().execute_workflow(input)


class _Commands(worker.WorkflowOutboundInterceptor):
    def __init__(self, next: worker.WorkflowOutboundInterceptor, of: _Workflow) -> None:
        super().__init__(next)
        self._of = of

    def start_activity(self, input: worker.StartActivityInput) -> ActivityHandle[Any]:
        input.headers = {**input.headers, **self._of.headers}
        return super().start_activity(input)

    def start_local_activity(self, input: worker.StartLocalActivityInput) -> ActivityHandle[Any]:
        input.headers = {**input.headers, **self._of.headers}
        return super().start_local_activity(input)

    async def start_child_workflow(
        self, input: worker.StartChildWorkflowInput
    ) -> ChildWorkflowHandle[Any, Any]:
        input.headers = {**input.headers, **self._of.headers}
        return await super().start_child_workflow(input)

    def continue_as_new(self, input: worker.ContinueAsNewInput) -> NoReturn:
        input.headers = {**input.headers, **self._of.headers}
        super().continue_as_new(input)


def _request_id(headers: Headers) -> str:
    if (payload := headers.get(HEADER)) is None:
        return ""
    return str(PayloadConverter.default.from_payloads([payload], [str])[0])
