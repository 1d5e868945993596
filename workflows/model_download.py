"""ModelDownload: bring one checkpoint onto one host's SSD; resumes where a dead attempt ended."""

from __future__ import annotations

from temporalio import workflow

from firstlight.contracts.naming import MODEL_DOWNLOAD
from firstlight.contracts.starts import DownloadInput, DownloadReceipt
from workflows import host_calls
from workflows.story import Story


@workflow.defn(name=MODEL_DOWNLOAD)
class ModelDownload:
    def __init__(self) -> None:
        self._story = Story()

    @workflow.run
    async def run(self, request: DownloadInput) -> DownloadReceipt:
        checkpoint = request.checkpoint
        origins = [*(f"peer {one}" for one in checkpoint.peer_endpoints), checkpoint.source]
        self._story.tell(f"fetching {checkpoint.checkpoint_id} from {', else '.join(origins)}")
        receipt = await host_calls.download_checkpoint(request)
        came = "was there already" if receipt.was_present else f"fetched in {receipt.elapsed_s:.2f} s"
        if receipt.came_from_peer:
            came += " from a peer"
        self._story.tell(
            f"{came}: {receipt.source_bytes / 1e6:.0f} MB of source became "
            f"{receipt.size_bytes / 1e6:.0f} MB, digest `{receipt.manifest_digest[:16]}`"
        )
        self._story.end("present", actual_s=receipt.elapsed_s)
        return receipt
