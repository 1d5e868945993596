"""SQL of the functions and triggers, rendered from the domain's life cycles.

Migrations hold their own literal copy of it, as history must not change with the code; a test compares the
head with what is rendered here, so that a changed life cycle without a migration does not pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from firstlight.domain.lifecycle import (
    HOST_STEPS,
    INSTANCE_STEPS,
    MODEL_STEPS,
    PLACEMENT_STEPS,
    HostState,
    InstanceState,
    ModelState,
    PlacementState,
)

INSTANCE_CHANNEL = "firstlight_instances"
MODEL_CHANNEL = "firstlight_models"
FLEET_CHANNEL = "firstlight_fleet"

State = TypeVar("State", HostState, InstanceState, ModelState, PlacementState)


def _pairs(steps: Mapping[State, frozenset[State]]) -> list[str]:
    return sorted(f"{old} {new}" for old in steps for new in steps[old])


STEPS: Mapping[str, list[str]] = {
    "hosts": _pairs(HOST_STEPS),
    "instances": _pairs(INSTANCE_STEPS),
    "models": _pairs(MODEL_STEPS),
    "placements": _pairs(PLACEMENT_STEPS),
}


def _step_check(table: str) -> list[str]:
    """A trigger that refuses a step the life cycle does not have."""
    listed = ",\n    ".join(f"'{pair}'" for pair in STEPS[table])
    return [
        f"""CREATE FUNCTION check_{table}_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state || ' ' || NEW.state) = ANY (ARRAY[
    {listed}
  ]) THEN
    RAISE EXCEPTION '{table}: no step from % to %', OLD.state, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_{table}_step';
  END IF;
  RETURN NEW;
END $$""",
        f"""CREATE TRIGGER check_step BEFORE UPDATE OF state ON {table} FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION check_{table}_step()""",
    ]


# Checked at commit, because a plan writes its instance before its reservations, and a replan moves both.
_GPUS_HELD = [
    """CREATE FUNCTION check_gpus_held() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject text := CASE TG_TABLE_NAME WHEN 'instances' THEN NEW.instance_id ELSE OLD.instance_id END;
  needed bigint;
  held bigint;
BEGIN
  SELECT gpu_count INTO needed FROM instances WHERE instance_id = subject AND is_live;
  IF FOUND THEN
    SELECT (SELECT count(*) FROM reservations WHERE instance_id = subject)
      + (SELECT count(*) FROM promises WHERE instance_id = subject) INTO held;
    IF held <> needed THEN
      RAISE EXCEPTION 'instance % holds % of its % GPUs', subject, held, needed
        USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_reservations_gpus_held';
    END IF;
  END IF;
  RETURN NULL;
END $$""",
    """CREATE CONSTRAINT TRIGGER check_gpus_held AFTER INSERT OR UPDATE OF state, host_id, epoch, gpu_count
  ON instances DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_gpus_held()""",
    """CREATE CONSTRAINT TRIGGER check_gpus_held AFTER DELETE
  ON reservations DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_gpus_held()""",
    """CREATE CONSTRAINT TRIGGER check_gpus_held AFTER DELETE
  ON promises DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_gpus_held()""",
]

# The start's row is locked before its promise, in the order of whoever gives that start up.
_HAND_ON = [
    """CREATE FUNCTION hand_gpu_on() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  heir text;
BEGIN
  SELECT instance_id INTO heir FROM promises WHERE host_id = OLD.host_id AND gpu_index = OLD.gpu_index;
  IF FOUND THEN
    PERFORM 1 FROM instances WHERE instance_id = heir FOR KEY SHARE;
    WITH kept AS (
      DELETE FROM promises WHERE host_id = OLD.host_id AND gpu_index = OLD.gpu_index
      RETURNING host_id, gpu_index, instance_id, epoch
    )
    INSERT INTO reservations (host_id, gpu_index, instance_id, epoch)
      SELECT host_id, gpu_index, instance_id, epoch FROM kept;
  END IF;
  RETURN NULL;
END $$""",
    """CREATE TRIGGER hand_gpu_on AFTER DELETE ON reservations FOR EACH ROW
  EXECUTE FUNCTION hand_gpu_on()""",
]

# A notification carries at most 8,000 bytes, so the failure's text is cut.
_NOTIFY = [
    f"""CREATE FUNCTION notify_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('{INSTANCE_CHANNEL}', json_build_object(
    'instance_id', NEW.instance_id, 'model', NEW.model, 'host_id', NEW.host_id, 'state', NEW.state,
    'endpoint', NEW.endpoint, 'epoch', NEW.epoch, 'max_concurrency', NEW.max_concurrency,
    'failure_code', NEW.failure_code, 'failure', left(NEW.failure, 1000))::text);
  RETURN NULL;
END $$""",
    """CREATE TRIGGER notify_insert AFTER INSERT ON instances FOR EACH ROW
  EXECUTE FUNCTION notify_instance()""",
    """CREATE TRIGGER notify_update AFTER UPDATE ON instances FOR EACH ROW
  WHEN ((OLD.state, OLD.endpoint, OLD.epoch, OLD.host_id, OLD.max_concurrency)
    IS DISTINCT FROM (NEW.state, NEW.endpoint, NEW.epoch, NEW.host_id, NEW.max_concurrency))
  EXECUTE FUNCTION notify_instance()""",
    f"""CREATE FUNCTION notify_model() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    PERFORM pg_notify('{MODEL_CHANNEL}', json_build_object('name', OLD.name, 'state', 'deleted')::text);
  ELSE
    PERFORM pg_notify('{MODEL_CHANNEL}', json_build_object('name', NEW.name, 'state', NEW.state)::text);
  END IF;
  RETURN NULL;
END $$""",
    """CREATE TRIGGER notify_change AFTER INSERT OR UPDATE OR DELETE ON models FOR EACH ROW
  EXECUTE FUNCTION notify_model()""",
]

# Equal payloads of one transaction arrive as one. A renewed lease is no news. What a start took and how
# a migration goes change no instance: whoever shows them would not hear of it otherwise.
_NOTIFY_FLEET = [
    f"""CREATE FUNCTION notify_fleet() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('{FLEET_CHANNEL}', TG_TABLE_NAME);
  RETURN NULL;
END $$""",
    """CREATE TRIGGER notify_fleet AFTER INSERT OR DELETE ON hosts FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()""",
    """CREATE TRIGGER notify_fleet_update AFTER UPDATE ON hosts FOR EACH ROW
  WHEN ((OLD.state, OLD.registration, OLD.edges, OLD.peer_endpoint)
    IS DISTINCT FROM (NEW.state, NEW.registration, NEW.edges, NEW.peer_endpoint))
  EXECUTE FUNCTION notify_fleet()""",
    """CREATE TRIGGER notify_fleet AFTER INSERT OR UPDATE OR DELETE ON placements FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()""",
    """CREATE TRIGGER notify_fleet AFTER INSERT OR UPDATE ON migrations FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()""",
    """CREATE TRIGGER notify_fleet AFTER INSERT OR UPDATE ON startup_observations FOR EACH STATEMENT
  EXECUTE FUNCTION notify_fleet()""",
]

# Every statement, in order; functions before the triggers that call them.
STATEMENTS: tuple[str, ...] = (
    *(statement for table in sorted(STEPS) for statement in _step_check(table)),
    *_GPUS_HELD,
    *_HAND_ON,
    *_NOTIFY,
    *_NOTIFY_FLEET,
)
FUNCTIONS: tuple[str, ...] = (
    *(f"check_{table}_step" for table in sorted(STEPS)),
    "check_gpus_held",
    "hand_gpu_on",
    "notify_instance",
    "notify_model",
    "notify_fleet",
)
