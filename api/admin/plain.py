"""Records as plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum

from api.progress_book import ProgressBook
from firstlight.contracts.starts import PlannedEstimate
from firstlight.database.records import InstanceRecord
from firstlight.domain.estimator import StartEstimate
from firstlight.domain.lifecycle import InstanceState


def plain(value: object) -> object:
    """Dataclasses to objects, enums to their values, tuples to lists; estimates with their total."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        row = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, PlannedEstimate | StartEstimate):
            row["total_s"] = value.total_s
        return row
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return value


def with_progress(instance: InstanceRecord, book: ProgressBook) -> dict[str, object]:
    """An instance, and how far its start is if that goes on and has said so."""
    is_starting = instance.state is InstanceState.STARTING
    told = book.start_of(instance.instance_id, instance.epoch) if is_starting else None
    row = plain(instance)
    assert isinstance(row, dict), "a record is a dataclass"
    return {**row, "progress": plain(told)}
