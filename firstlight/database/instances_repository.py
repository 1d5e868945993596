"""Instances after their start: list, drain, close."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.contracts.instances import BeginDrainInput, BeginDrainReceipt, FinishInput
from firstlight.database.records import InstanceRecord
from firstlight.domain.lifecycle import InstanceState

__all__ = ["InstanceRecord", "begin_drain", "finish_instance", "get_instance", "list_instances"]


async def list_instances(
    session: AsyncSession, *, states: Collection[InstanceState] | None = None, model: str | None = None
) -> list[InstanceRecord]:
    """Instances in these states (None: all), newest first."""
    raise NotImplementedError


async def get_instance(session: AsyncSession, instance_id: str) -> InstanceRecord:
    """Raises: UnknownInstance."""
    raise NotImplementedError


async def begin_drain(session: AsyncSession, request: BeginDrainInput) -> BeginDrainReceipt:
    """ready → draining, unless the model's minimum needs it. Idempotent. Raises: UnknownInstance, StaleEpoch."""
    raise NotImplementedError


async def finish_instance(session: AsyncSession, request: FinishInput) -> None:
    """Release the GPUs and close the row. Idempotent. Raises: UnknownInstance, StaleEpoch."""
    raise NotImplementedError
