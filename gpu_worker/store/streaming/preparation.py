"""What stands before the first byte that counts: headers, a plan, and what an earlier attempt left.

staging/<id>/stamp.json   which bytes, in which type, the rest belongs to
staging/<id>/headers/     configuration, and weight files as headers over holes
staging/<id>/plan/        the plan; kept, so that a download that was killed does not plan again
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from firstlight.domain.errors import CheckpointMismatch, FirstlightError
from firstlight.domain.names import parse_checkpoint_id
from gpu_worker.convert.stream_plan import PLAN_NAME, StreamPlan, read_plan
from gpu_worker.store.download_order import DownloadOrder
from gpu_worker.store.sources import Layout, Source, SourceDescription
from gpu_worker.store.streaming.ahead import ReadAhead
from gpu_worker.store.streaming.headers import fetch_headers
from gpu_worker.store.streaming.native import fetch_manifest, native_plan
from gpu_worker.store.streaming.planner import Planner

log = logging.getLogger("store.stream")

WHOLE = "whole"
HEADERS = "headers"


class ConvertWhole(Exception):
    """This source cannot be streamed; the message says why."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """`identity` changes when a byte of what is to be fetched may have changed."""

    plan: StreamPlan
    identity: str
    latency_s: float


class Preparation:
    """Of one attempt. `ahead` reads on while the plan is being made."""

    def __init__(
        self,
        *,
        order: DownloadOrder,
        source: Source,
        description: SourceDescription,
        staging: Path,
        planner: Planner,
        ahead: ReadAhead,
    ) -> None:
        self._order = order
        self._source = source
        self._description = description
        self._staging = staging
        self._planner = planner
        self._ahead = ahead

    async def run(self) -> Prepared:
        """Raises: ConvertWhole; every SourceError and CheckpointError."""
        if self._description.layout is Layout.CHECKPOINT:
            return await self._native()
        identity = f"{self._description.revision} transformers {version('transformers')}"
        if self._description.layout is Layout.GGUF:
            identity += f" gguf {version('gguf')}"
        self._settle(identity)
        # Reading one takes seconds when a large model's rows are permuted: not on the event loop.
        if (kept := await asyncio.to_thread(self._kept_plan)) is not None:
            return Prepared(kept, identity, 0.0)
        began = time.monotonic()
        headers = self._staging / HEADERS
        await fetch_headers(self._source, self._description, headers)
        # Two requests one after the other, with little to bring.
        latency_s = (time.monotonic() - began) / 2
        self._ahead.start(headers)
        await self._made_by_planner(headers)
        plan = await asyncio.to_thread(read_plan, self._plan_folder, file_sizes=self._sizes)
        took_s = time.monotonic() - began
        log.info("planned checkpoint=%s in_s=%.3f", self._order.checkpoint_id, took_s)
        return Prepared(plan, identity, latency_s)

    @property
    def _plan_folder(self) -> Path:
        return self._staging / "plan"

    @property
    def _sizes(self) -> dict[str, int]:
        return {file.name: file.size_bytes for file in self._description.files}

    async def _native(self) -> Prepared:
        """By the manifest's digest: what came from one store is taken up from another, or from the source."""
        began = time.monotonic()
        manifest = await fetch_manifest(self._source, self._description)
        latency_s = time.monotonic() - began
        if self._order.expected_digest not in ("", manifest.digest):
            # Said again at the end of every download; here before a byte of the wrong ones has come.
            raise CheckpointMismatch(
                f"{self._order.checkpoint_id} there has digest {manifest.digest[:16]}…, but the first "
                f"conversion recorded {self._order.expected_digest[:16]}…",
                checkpoint_id=self._order.checkpoint_id,
            )
        plan = native_plan(manifest, dtype=self._order.dtype)
        self._settle(manifest.digest)
        return Prepared(plan, manifest.digest, latency_s)

    def _kept_plan(self) -> StreamPlan | None:
        if (self._plan_folder / PLAN_NAME).exists():
            with contextlib.suppress(FirstlightError):  # torn by a crash: it is made again
                return read_plan(self._plan_folder, file_sizes=self._sizes)
        return None

    async def _made_by_planner(self, headers: Path) -> None:
        model, revision = parse_checkpoint_id(self._order.checkpoint_id)
        try:
            reason = await self._planner.plan(
                headers, self._plan_folder, dtype=self._order.dtype, model=model, revision=revision
            )
        except FirstlightError as failure:
            if type(failure) is not FirstlightError:
                raise
            reason = failure.message  # it died, and says nothing about this model
        if reason is not None:
            raise ConvertWhole(reason)

    def _settle(self, identity: str) -> None:
        """Empty the folder of what belongs to other bytes than those that are described now."""
        stamp = json.dumps({"identity": identity, "dtype": self._order.dtype})
        path = self._staging / "stamp.json"
        if not path.exists() or path.read_text() != stamp:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir()
            path.write_text(stamp)
        (self._staging / WHOLE).mkdir(exist_ok=True)
