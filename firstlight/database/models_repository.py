"""Deployed models: create, scale, delete."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.records import InstanceRecord, ModelRecord, ModelSpec

__all__ = [
    "ModelRecord",
    "ModelSpec",
    "begin_delete",
    "create_model",
    "finish_delete",
    "get_model",
    "list_models",
    "scale_model",
]


async def create_model(
    session: AsyncSession, spec: ModelSpec, *, actor: str = "api"
) -> tuple[ModelRecord, bool]:
    """Deploy; (record, True) if new, (record, False) if it was deployed with the same settings.

    Raises: ModelExists naming what differs; ModelBeingDeleted.
    """
    raise NotImplementedError


async def get_model(session: AsyncSession, name: str) -> ModelRecord:
    """Raises: UnknownModel."""
    raise NotImplementedError


async def list_models(session: AsyncSession) -> list[ModelRecord]:
    """All models by name, those being deleted included."""
    raise NotImplementedError


async def scale_model(
    session: AsyncSession,
    name: str,
    *,
    min_instances: int | None = None,
    max_instances: int | None = None,
    keep_alive_s: float | None = None,
    max_concurrency: int | None = None,
    actor: str = "api",
) -> ModelRecord:
    """Change what is given. Raises: UnknownModel, ModelBeingDeleted, InvalidInput."""
    raise NotImplementedError


async def begin_delete(session: AsyncSession, name: str, *, actor: str = "api") -> list[InstanceRecord]:
    """Take the model out of service; its live instances are the caller's to stop. Idempotent.

    Raises: UnknownModel.
    """
    raise NotImplementedError


async def finish_delete(session: AsyncSession, name: str) -> bool:
    """Forget a model being deleted once nothing of it runs. True: it is gone; False: instances are left."""
    raise NotImplementedError
