"""Deploying a model: its name, its source as it is now, and what both become in the database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from api.admin.fields import DeployRequest
from firstlight.database.connection import Database
from firstlight.database.models_repository import ModelRecord, create_model
from firstlight.database.records import ModelSpec
from firstlight.domain.names import checkpoint_id, model_name
from firstlight.settings import Settings

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# What the weights of a source take per parameter, roughly, before the first conversion tells exactly:
# safetensors are mostly of 2 bytes, GGUF mostly of 5 bits.
_SOURCE_BYTES = {"huggingface": 2.0, "gguf": 0.65}


class Described(Protocol):
    @property
    def revision(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def source_bytes(self) -> int: ...


Describe = Callable[[str], Awaitable[Described]]


async def deploy(
    request: DeployRequest, *, describe: Describe, database: Database, settings: Settings
) -> tuple[ModelRecord, bool]:
    """The model and whether it is new. Nothing is fetched yet but the list of its files.

    Raises: InvalidName; SourceUnsupported, SourceUnreachable, SourceCorrupt; ModelExists, ModelBeingDeleted.
    """
    # Before anything else: a name that is a path must reach neither a source nor a disk.
    name = model_name(request.name)
    source = await describe(request.source)
    spec = ModelSpec(
        name=name,
        source=request.source,
        source_revision=source.revision,
        checkpoint_id=checkpoint_id(name, source.revision),
        source_bytes=source.source_bytes,
        size_bytes=estimated_bytes(source, request.dtype),
        dtype=request.dtype,
        gpu_count=request.gpu_count,
        context_length=request.context_length,
        min_instances=request.min_instances,
        max_instances=max(request.max_instances, request.min_instances),
        keep_alive_s=settings.default_keep_alive_s if request.keep_alive_s is None else request.keep_alive_s,
        max_concurrency=request.max_concurrency or settings.default_max_concurrency,
        priority=request.priority,
        transfer=request.transfer or settings.default_transfer,
    )
    async with database.transaction() as session:
        return await create_model(session, spec)


def estimated_bytes(source: Described, dtype: str) -> int:
    """Size of the checkpoint to be, until its conversion has recorded it."""
    return int(source.source_bytes * _BYTES[dtype] / _SOURCE_BYTES.get(str(source.layout), 2.0))
