"""A made-up fleet as rows of a real Postgres, so that reading it can be measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import LiteralString

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from firstlight.database import schema
from firstlight.database.edges import edges_to_json
from firstlight.domain.fleet import FleetSnapshot, Host, Model, Running
from firstlight.launcher.embedded.postgres import EmbeddedPostgres

# A value of one column.
Cell = str | int | float | bool | None
NOW = "now"
LATER = "infinity"


@contextmanager
def postgres() -> Iterator[str]:
    """A server of one's own with an empty, migrated database; its URL."""
    with TemporaryDirectory(prefix="firstlight-fleet-") as folder:
        server = EmbeddedPostgres(Path(folder))
        try:
            url = server.start()
            schema.upgrade(url)
            yield url
        finally:
            server.stop()


def fill(url: str, snapshot: FleetSnapshot, models: Sequence[Model]) -> None:
    """Write the fleet over whatever is there. Its rows were never anywhere but here: no trigger is asked."""
    dsn = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn) as connection, connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        cursor.execute(
            "TRUNCATE checkpoints, models, hosts, gpus, placements, instances, reservations, engine_loads "
            "CASCADE"
        )
        _copy(cursor, "checkpoints", "checkpoint_id", ((model.checkpoint_id,) for model in models))
        _copy(cursor, "models", _MODEL, (_model(model) for model in models))
        cursor.execute("SELECT name, model_id FROM models")
        ids = {str(name): int(str(model_id)) for name, model_id in cursor.fetchall()}
        _copy(cursor, "hosts", _HOST, (_host(host) for host in snapshot.hosts))
        _copy(cursor, "gpus", _GPU, (row for host in snapshot.hosts for row in _gpus(host)))
        _copy(cursor, "placements", _PLACEMENT, (row for host in snapshot.hosts for row in _placements(host)))
        _copy(cursor, "instances", _INSTANCE, (_instance(one, ids) for one in snapshot.running))
        _copy(cursor, "reservations", _RESERVATION, (row for one in snapshot.running for row in _held(one)))
        _copy(cursor, "engine_loads", _LOAD, (_load(one) for one in snapshot.running))
        cursor.execute("UPDATE engine_loads SET seen_at = now() + interval '1 day'")
        connection.commit()
        connection.autocommit = True
        cursor.execute("VACUUM ANALYZE")


_MODEL = (
    "name, source, source_revision, checkpoint_id, source_bytes, size_bytes, dtype, gpu_count, "
    "context_length, min_instances, max_instances, keep_alive_s, max_concurrency, priority, attach_s"
)
_HOST = (
    "host_id, host_class, host_address, store_address, state, registration, lease_expires_at, renewed_at, "
    "ssd_capacity_bytes, dram_capacity_bytes, ssd_read_bytes_per_s, edges, peer_endpoint"
)
_GPU = "host_id, gpu_index, memory_bytes"
_PLACEMENT = "checkpoint_id, host_id, tier, state, size_bytes"
_INSTANCE = (
    "instance_id, model_id, model, host_id, state, epoch, decision_id, checkpoint_id, gpu_count, "
    "max_concurrency, keep_alive_s, endpoint, ready_at"
)
_RESERVATION = "host_id, gpu_index, instance_id, epoch"
_LOAD = "instance_id, requests, tokens, idle_since"


def _copy(
    cursor: psycopg.Cursor[tuple[object, ...]],
    table: str,
    columns: LiteralString,
    rows: Iterable[tuple[Cell, ...]],
) -> None:
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), sql.SQL(columns))
    with cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


def _model(model: Model) -> tuple[Cell, ...]:
    attach = json.dumps(dict(model.attach_s))
    sizes = (model.source_bytes, model.size_bytes, "bfloat16", model.gpu_count, 4096)
    limits = (model.min_instances, model.max_instances, 60.0, 4, model.priority, attach)
    return (model.name, f"hf://example/{model.name}", "1", model.checkpoint_id, *sizes, *limits)


def _host(host: Host) -> tuple[Cell, ...]:
    edges = json.dumps(edges_to_json(host.edges))
    addresses = ("10.0.0.1:7000", "10.0.0.1:7001", str(host.state), 1, LATER, NOW)
    sizes = (host.ssd_capacity_bytes, host.dram_capacity_bytes, 3e9)
    return (host.host_id, host.host_class, *addresses, *sizes, edges, host.peer_endpoint)


def _gpus(host: Host) -> Iterator[tuple[Cell, ...]]:
    for gpu in host.gpus:
        yield (host.host_id, gpu.index, gpu.memory_bytes)


def _placements(host: Host) -> Iterator[tuple[Cell, ...]]:
    for checkpoint_id, tier in host.tiers.items():
        yield (checkpoint_id, host.host_id, str(tier), "ready", 1 << 30)


def _instance(one: Running, ids: dict[str, int]) -> tuple[Cell, ...]:
    model = one.model
    whose = (one.instance_id, ids[model.name], model.name, one.host_id, "ready", 1, f"d-{one.instance_id}")
    return (*whose, model.checkpoint_id, len(one.gpu_indices), 4, 60.0, "10.0.0.1:8000", NOW)


def _held(one: Running) -> Iterator[tuple[Cell, ...]]:
    for index in one.gpu_indices:
        yield (one.host_id, index, one.instance_id, 1)


def _load(one: Running) -> tuple[Cell, ...]:
    return (one.instance_id, one.requests, one.tokens, "2026-01-01" if one.idle_s is not None else None)
