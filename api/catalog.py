"""Deployed models in memory, so that a warm request asks nobody what its model is."""

from __future__ import annotations

import time

from firstlight.database.connection import Database
from firstlight.database.models_repository import ModelRecord, get_model, list_models
from firstlight.domain.errors import InvalidName, UnknownModel
from firstlight.domain.lifecycle import ModelState
from firstlight.domain.names import model_name

# A name that was just asked for and does not exist is not asked for again so soon.
ABSENT_FOR_S = 1.0
ABSENT_AT_MOST = 4096


class Catalog:
    """Fed by the listener; a name it does not know is looked up once in Postgres."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._records: dict[str, ModelRecord] = {}
        self._absent_until_s: dict[str, float] = {}

    @property
    def records(self) -> list[ModelRecord]:
        """Models in service, by name."""
        return sorted(
            (record for record in self._records.values() if record.state is ModelState.ACTIVE),
            key=lambda record: record.name,
        )

    @property
    def all_records(self) -> list[ModelRecord]:
        """Those being deleted included."""
        return list(self._records.values())

    def known(self, name: str) -> ModelRecord | None:
        return self._records.get(name)

    def max_instances_of(self, name: str) -> int | None:
        record = self._records.get(name)
        return None if record is None else record.max_instances

    def min_instances_of(self, name: str) -> int:
        record = self._records.get(name)
        return 0 if record is None else record.min_instances

    async def find(self, name: str) -> ModelRecord:
        """The model in service under this name. Raises: UnknownModel, DatabaseUnavailable."""
        record = self._records.get(name)
        if record is None:
            record = await self._look_up(name)
        if record.state is not ModelState.ACTIVE:
            raise UnknownModel(f"model {name!r} is being deleted", model=name)
        return record

    async def refresh(self) -> None:
        """Replace all by what the database holds now."""
        async with self._database.session() as session:
            records = await list_models(session)
        self._records = {record.name: record for record in records}
        self._absent_until_s.clear()

    async def reload(self, name: str) -> ModelRecord | None:
        """Take one model in again; None if it is gone."""
        self._absent_until_s.pop(name, None)
        try:
            async with self._database.session() as session:
                record = await get_model(session, name)
        except UnknownModel:
            self._records.pop(name, None)
            return None
        self._records[name] = record
        return record

    async def _look_up(self, name: str) -> ModelRecord:
        if self._absent_until_s.get(name, 0.0) > time.monotonic():
            raise _unknown(name)
        try:
            model_name(name)
        except InvalidName:
            raise _unknown(name) from None
        record = await self.reload(name)
        if record is None:
            if len(self._absent_until_s) >= ABSENT_AT_MOST:
                self._absent_until_s.clear()
            self._absent_until_s[name] = time.monotonic() + ABSENT_FOR_S
            raise _unknown(name)
        return record


def _unknown(name: str) -> UnknownModel:
    return UnknownModel(f"the model {name[:120]!r} does not exist", model=name[:120])
