"""Deployed models: create, scale, delete."""

from __future__ import annotations

from dataclasses import asdict, fields

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from firstlight.database.housekeeping import forget_unused_checkpoints
from firstlight.database.instance_closing import lock_instances
from firstlight.database.instances_repository import read_instances
from firstlight.database.keys_repository import audit
from firstlight.database.locks import lock_model
from firstlight.database.records import InstanceRecord, ModelRecord, ModelSpec
from firstlight.database.tables import CheckpointRow, InstanceRow, ModelRow
from firstlight.domain.errors import InvalidInput, ModelBeingDeleted, ModelExists, UnknownModel
from firstlight.domain.lifecycle import MODEL_STEPS, ModelState, check_step

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

# Estimates: two looks at one source may differ in them, and it is the same model all the same.
_NOT_COMPARED = frozenset({"source_bytes", "size_bytes"})


async def create_model(
    session: AsyncSession, spec: ModelSpec, *, actor: str = "api"
) -> tuple[ModelRecord, bool]:
    """Deploy; (record, True) if new, (record, False) if it was deployed with the same settings.

    Raises: ModelExists naming what differs; ModelBeingDeleted; InvalidInput.
    """
    _check_settings(spec.min_instances, spec.max_instances, spec.keep_alive_s, spec.max_concurrency)
    await lock_model(session, spec.name)
    if (found := await _find(session, spec.name)) is not None:
        _check_same(found, spec)
        return found, False
    # An update of nothing: it locks a row that was there, so that nobody removes it before we refer to it.
    await session.execute(
        insert(CheckpointRow)
        .values(checkpoint_id=spec.checkpoint_id)
        .on_conflict_do_update(
            # Not its key, which would shut out whoever only refers to it.
            index_elements=["checkpoint_id"],
            set_={"size_bytes": CheckpointRow.size_bytes},
        )
    )
    session.add(ModelRow(**asdict(spec), state=ModelState.ACTIVE))
    await audit(session, actor=actor, act="create", subject=f"model/{spec.name}", detail=asdict(spec))
    return await get_model(session, spec.name), True


async def get_model(session: AsyncSession, name: str) -> ModelRecord:
    """Raises: UnknownModel."""
    if (found := await _find(session, name)) is None:
        raise UnknownModel(f"there is no model {name!r}", model=name)
    return found


async def list_models(session: AsyncSession) -> list[ModelRecord]:
    """All models by name, those being deleted included."""
    rows = await session.execute(
        select(ModelRow, CheckpointRow)
        .join(CheckpointRow, CheckpointRow.checkpoint_id == ModelRow.checkpoint_id)
        .order_by(ModelRow.name)
        .execution_options(populate_existing=True)
    )
    return [_record(model, checkpoint) for model, checkpoint in rows]


async def scale_model(
    session: AsyncSession,
    name: str,
    *,
    min_instances: int | None = None,
    max_instances: int | None = None,
    keep_alive_s: float | None = None,
    max_concurrency: int | None = None,
    priority: int | None = None,
    transfer: str | None = None,
    actor: str = "api",
) -> ModelRecord:
    """Change what is given, for starts from now on. Raises: UnknownModel, ModelBeingDeleted, InvalidInput."""
    row = await _lock(session, name)
    if row.state == ModelState.DELETING:
        raise ModelBeingDeleted(f"model {name!r} is being deleted", model=name)
    given = {
        "min_instances": min_instances,
        "max_instances": max_instances,
        "keep_alive_s": keep_alive_s,
        "max_concurrency": max_concurrency,
        "priority": priority,
        "transfer": transfer,
    }
    changes = {setting: value for setting, value in given.items() if value is not None}
    for setting, value in changes.items():
        setattr(row, setting, value)
    _check_settings(row.min_instances, row.max_instances, row.keep_alive_s, row.max_concurrency)
    if changes:
        await audit(session, actor=actor, act="scale", subject=f"model/{name}", detail=changes)
    return await get_model(session, name)


async def begin_delete(session: AsyncSession, name: str, *, actor: str = "api") -> list[InstanceRecord]:
    """Take the model out of service; its live instances, those that start included, are the caller's to stop.

    From the commit on no start is planned and none can publish. Idempotent. Raises: UnknownModel.
    """
    # Waits for a plan under way, whose instance is then in the answer.
    await lock_model(session, name)
    row = await _lock(session, name)
    if row.state != ModelState.DELETING:
        check_step(MODEL_STEPS, what=f"model {name}", old=ModelState(row.state), new=ModelState.DELETING)
        row.state = ModelState.DELETING
        await audit(session, actor=actor, act="delete", subject=f"model/{name}")
    return await read_instances(session, [InstanceRow.model_id == row.model_id, InstanceRow.is_live])


async def finish_delete(session: AsyncSession, name: str) -> bool:
    """Forget a model being deleted once nothing of it runs. True: it is gone; False: instances are left.

    Its checkpoint stays known as long as a host holds a copy, so that the model can come back fast.
    Raises: ModelExists when it is not being deleted.
    """
    await lock_model(session, name)
    model_id = await session.scalar(select(ModelRow.model_id).where(ModelRow.name == name))
    if model_id is None:
        return True
    await lock_instances(session, InstanceRow.model_id == model_id)
    row = await session.scalar(
        select(ModelRow)
        .where(ModelRow.model_id == model_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    if row is None:
        return True
    if row.state != ModelState.DELETING:
        raise ModelExists(f"model {name!r} is not being deleted", model=name)
    live = await session.scalar(
        select(func.count()).where(InstanceRow.model_id == row.model_id, InstanceRow.is_live)
    )
    if live:
        return False
    await session.execute(delete(ModelRow).where(ModelRow.model_id == row.model_id))
    await forget_unused_checkpoints(session)
    return True


async def _find(session: AsyncSession, name: str) -> ModelRecord | None:
    rows = await session.execute(
        select(ModelRow, CheckpointRow)
        .join(CheckpointRow, CheckpointRow.checkpoint_id == ModelRow.checkpoint_id)
        .where(ModelRow.name == name)
        .execution_options(populate_existing=True)
    )
    found = rows.one_or_none()
    return _record(*found) if found else None


async def _lock(session: AsyncSession, name: str) -> ModelRow:
    row = await session.scalar(select(ModelRow).where(ModelRow.name == name).with_for_update(key_share=True))
    if row is None:
        raise UnknownModel(f"there is no model {name!r}", model=name)
    return row


def _check_same(found: ModelRecord, spec: ModelSpec) -> None:
    if found.state is ModelState.DELETING:
        raise ModelBeingDeleted(
            f"model {spec.name!r} is being deleted; deploy it again later", model=spec.name
        )
    names = [field.name for field in fields(ModelSpec) if field.name not in _NOT_COMPARED]
    differing = [name for name in names if getattr(found, name) != getattr(spec, name)]
    if differing:
        told = ", ".join(
            f"{name} {getattr(found, name)!r}, not {getattr(spec, name)!r}" for name in differing
        )
        raise ModelExists(
            f"model {spec.name!r} is deployed already with {told}", model=spec.name, differing=differing
        )


def _check_settings(
    min_instances: int, max_instances: int, keep_alive_s: float, max_concurrency: int
) -> None:
    if not 0 <= min_instances <= max_instances:
        raise InvalidInput(
            f"min_instances {min_instances} and max_instances {max_instances} must be in order, not negative",
            param="min_instances",
        )
    if not keep_alive_s >= 0:
        raise InvalidInput(f"keep_alive_s {keep_alive_s} must not be negative", param="keep_alive_s")
    if max_concurrency < 1:
        raise InvalidInput(f"max_concurrency {max_concurrency} must be at least 1", param="max_concurrency")


def _record(row: ModelRow, checkpoint: CheckpointRow) -> ModelRecord:
    return ModelRecord(
        name=row.name,
        source=row.source,
        source_revision=row.source_revision,
        checkpoint_id=row.checkpoint_id,
        source_bytes=row.source_bytes,
        size_bytes=checkpoint.size_bytes or row.size_bytes,
        dtype=row.dtype,
        gpu_count=row.gpu_count,
        context_length=row.context_length,
        min_instances=row.min_instances,
        max_instances=row.max_instances,
        keep_alive_s=row.keep_alive_s,
        max_concurrency=row.max_concurrency,
        priority=row.priority,
        transfer=row.transfer,
        state=ModelState(row.state),
        created_at_unix_s=row.created_at.timestamp(),
        manifest_digest=checkpoint.manifest_digest or "",
        size_is_exact=checkpoint.size_bytes is not None,
    )
