"""How a start gets its checkpoint: through the one ModelDownload of that checkpoint and host."""

from __future__ import annotations

from temporalio import workflow
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

from firstlight.contracts import naming
from firstlight.contracts.starting import TASK_TIMEOUT
from firstlight.contracts.starts import DownloadInput, DownloadReceipt
from workflows import host_calls
from workflows.model_download import ModelDownload


async def download(request: DownloadInput) -> DownloadReceipt:
    """Start the download, or join the one under way: its store lets any number of callers wait for it."""
    try:
        return await workflow.execute_child_workflow(
            ModelDownload.run,
            request,
            id=naming.download_id(request.checkpoint.checkpoint_id, request.host_id),
            task_queue=naming.CONTROL_QUEUE,
            task_timeout=TASK_TIMEOUT,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            # A download that others may wait for outlives the start that asked first.
            parent_close_policy=ParentClosePolicy.ABANDON,
            cancellation_type=ChildWorkflowCancellationType.ABANDON,
            static_summary=f"Fetch {request.checkpoint.checkpoint_id} to {request.host_id}",
            search_attributes=_attributes(request),
        )
    except WorkflowAlreadyStartedError:
        return await host_calls.download_checkpoint(request)


def _attributes(request: DownloadInput) -> TypedSearchAttributes:
    return TypedSearchAttributes(
        [
            SearchAttributePair(naming.MODEL, request.model),
            SearchAttributePair(naming.HOST, request.host_id),
            SearchAttributePair(naming.PHASE, "downloading"),
            SearchAttributePair(naming.ESTIMATED_MS, round(request.estimated_s * 1000)),
        ]
    )
