"""The first schema: models, hosts, instances, reservations, decisions and what was learned from them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A copy of firstlight.database.triggers as it was; op.execute takes each as it stands.
TRIGGERS = (
    """CREATE FUNCTION check_hosts_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state || ' ' || NEW.state) = ANY (ARRAY[
    'draining lost',
    'draining ready',
    'lost ready',
    'ready draining',
    'ready lost'
  ]) THEN
    RAISE EXCEPTION 'hosts: no step from % to %', OLD.state, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_hosts_step';
  END IF;
  RETURN NEW;
END $$""",
    """CREATE TRIGGER check_step BEFORE UPDATE OF state ON hosts FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION check_hosts_step()""",
    """CREATE FUNCTION check_instances_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state || ' ' || NEW.state) = ANY (ARRAY[
    'draining failed',
    'draining ready',
    'draining stopped',
    'ready draining',
    'ready failed',
    'ready starting',
    'ready stopped',
    'starting failed',
    'starting ready',
    'starting stopped'
  ]) THEN
    RAISE EXCEPTION 'instances: no step from % to %', OLD.state, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_instances_step';
  END IF;
  RETURN NEW;
END $$""",
    """CREATE TRIGGER check_step BEFORE UPDATE OF state ON instances FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION check_instances_step()""",
    """CREATE FUNCTION check_models_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state || ' ' || NEW.state) = ANY (ARRAY[
    'active deleting'
  ]) THEN
    RAISE EXCEPTION 'models: no step from % to %', OLD.state, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_models_step';
  END IF;
  RETURN NEW;
END $$""",
    """CREATE TRIGGER check_step BEFORE UPDATE OF state ON models FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION check_models_step()""",
    """CREATE FUNCTION check_placements_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT (OLD.state || ' ' || NEW.state) = ANY (ARRAY[
    'loading quarantined',
    'loading ready',
    'quarantined loading',
    'ready loading',
    'ready quarantined'
  ]) THEN
    RAISE EXCEPTION 'placements: no step from % to %', OLD.state, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_placements_step';
  END IF;
  RETURN NEW;
END $$""",
    """CREATE TRIGGER check_step BEFORE UPDATE OF state ON placements FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION check_placements_step()""",
    """CREATE FUNCTION check_gpus_held() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject text := CASE TG_TABLE_NAME WHEN 'instances' THEN NEW.instance_id ELSE OLD.instance_id END;
  needed bigint;
  held bigint;
BEGIN
  SELECT gpu_count INTO needed FROM instances WHERE instance_id = subject AND is_live;
  IF FOUND THEN
    SELECT count(*) INTO held FROM reservations WHERE instance_id = subject;
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
    """CREATE FUNCTION notify_instance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('firstlight_instances', json_build_object(
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
    """CREATE FUNCTION notify_model() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' THEN
    PERFORM pg_notify('firstlight_models', json_build_object('name', OLD.name, 'state', 'deleted')::text);
  ELSE
    PERFORM pg_notify('firstlight_models', json_build_object('name', NEW.name, 'state', NEW.state)::text);
  END IF;
  RETURN NULL;
END $$""",
    """CREATE TRIGGER notify_change AFTER INSERT OR UPDATE OR DELETE ON models FOR EACH ROW
  EXECUTE FUNCTION notify_model()""",
)
FUNCTIONS = (
    "check_hosts_step",
    "check_instances_step",
    "check_models_step",
    "check_placements_step",
    "check_gpus_held",
    "notify_instance",
    "notify_model",
)


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("fencing_epoch")))
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("key_hash ~ '^[0-9a-f]{64}$'", name=op.f("ck_api_keys_hash_is_sha256")),
        sa.CheckConstraint("scope IN ('inference', 'admin')", name=op.f("ck_api_keys_scope_is_known")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
    )
    op.create_table(
        "audit_log",
        sa.Column("entry_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("act", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_at"), "audit_log", ["at"], unique=False)
    op.create_index("ix_audit_log_subject_at", "audit_log", ["subject", "at"], unique=False)
    op.create_table(
        "checkpoints",
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("manifest_digest", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(manifest_digest IS NULL) = (size_bytes IS NULL)",
            name=op.f("ck_checkpoints_exact_size_comes_with_digest"),
        ),
        sa.CheckConstraint("size_bytes > 0", name=op.f("ck_checkpoints_size_is_positive")),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_checkpoints")),
    )
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=True),
        sa.Column("instance_id", sa.Text(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=True),
        sa.Column("gpu_indices", postgresql.ARRAY(sa.BIGINT()), nullable=False),
        sa.Column("estimate", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("candidates", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("deadline_s", sa.Float(precision=53), nullable=True),
        sa.Column("replaces", sa.Text(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind <> 'place' OR (host_id IS NOT NULL AND instance_id IS NOT NULL AND epoch IS NOT NULL "
            "AND estimate IS NOT NULL)",
            name=op.f("ck_decisions_place_is_complete"),
        ),
        sa.CheckConstraint("kind IN ('place', 'wait', 'reject')", name=op.f("ck_decisions_kind_is_known")),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_decisions")),
        sa.UniqueConstraint("replaces", name=op.f("uq_decisions_replaces")),
    )
    op.create_index("ix_decisions_decided_at", "decisions", ["decided_at"], unique=False)
    op.create_index("ix_decisions_instance_id", "decisions", ["instance_id"], unique=False)
    op.create_index("ix_decisions_model_decided_at", "decisions", ["model", "decided_at"], unique=False)
    op.create_table(
        "hosts",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("host_class", sa.Text(), nullable=False),
        sa.Column("host_address", sa.Text(), nullable=False),
        sa.Column("store_address", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("registration", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("renewed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "registered_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("lost_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ssd_capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dram_capacity_bytes", sa.BigInteger(), nullable=False),
        sa.Column("ssd_read_bytes_per_s", sa.Float(precision=53), nullable=False),
        sa.Column(
            "edges",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.CheckConstraint("(state = 'lost') = (lost_at IS NOT NULL)", name=op.f("ck_hosts_lost_has_a_time")),
        sa.CheckConstraint("state IN ('ready', 'draining', 'lost')", name=op.f("ck_hosts_state_is_known")),
        sa.CheckConstraint(
            "dram_capacity_bytes >= 0 AND ssd_capacity_bytes >= 0 AND ssd_read_bytes_per_s >= 0",
            name=op.f("ck_hosts_capacities_not_negative"),
        ),
        sa.CheckConstraint("registration >= 1", name=op.f("ck_hosts_registration_is_positive")),
        sa.PrimaryKeyConstraint("host_id", name=op.f("pk_hosts")),
    )
    op.create_table(
        "gpus",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("gpu_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("gpu_index >= 0", name=op.f("ck_gpus_index_not_negative")),
        sa.CheckConstraint("memory_bytes >= 0", name=op.f("ck_gpus_memory_not_negative")),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name=op.f("fk_gpus_host_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", "gpu_index", name=op.f("pk_gpus")),
    )
    op.create_table(
        "models",
        sa.Column("model_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_revision", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("source_bytes", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("gpu_count", sa.BigInteger(), nullable=False),
        sa.Column("context_length", sa.BigInteger(), nullable=False),
        sa.Column("min_instances", sa.BigInteger(), nullable=False),
        sa.Column("max_instances", sa.BigInteger(), nullable=False),
        sa.Column("keep_alive_s", sa.Float(precision=53), nullable=False),
        sa.Column("max_concurrency", sa.BigInteger(), nullable=False),
        sa.Column(
            "attach_s",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("state IN ('active', 'deleting')", name=op.f("ck_models_state_is_known")),
        sa.CheckConstraint("context_length >= 0", name=op.f("ck_models_context_not_negative")),
        sa.CheckConstraint("gpu_count >= 1", name=op.f("ck_models_needs_a_gpu")),
        sa.CheckConstraint("keep_alive_s >= 0", name=op.f("ck_models_keep_alive_not_negative")),
        sa.CheckConstraint("max_concurrency >= 1", name=op.f("ck_models_serves_a_request")),
        sa.CheckConstraint(
            "min_instances >= 0 AND max_instances >= min_instances", name=op.f("ck_models_instance_bounds")
        ),
        sa.CheckConstraint(
            "size_bytes >= 0 AND source_bytes >= 0", name=op.f("ck_models_bytes_not_negative")
        ),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.checkpoint_id"], name=op.f("fk_models_checkpoint_id")
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
    )
    op.create_index(op.f("ix_models_checkpoint_id"), "models", ["checkpoint_id"], unique=False)
    op.create_table(
        "placements",
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state IN ('loading', 'ready', 'quarantined')", name=op.f("ck_placements_state_is_known")
        ),
        sa.CheckConstraint("tier IN ('ssd', 'dram')", name=op.f("ck_placements_tier_is_local")),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_placements_size_not_negative")),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.checkpoint_id"],
            name=op.f("fk_placements_checkpoint_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name=op.f("fk_placements_host_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("checkpoint_id", "host_id", "tier", name=op.f("pk_placements")),
    )
    op.create_index(op.f("ix_placements_host_id"), "placements", ["host_id"], unique=False)
    op.create_table(
        "instances",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.BigInteger(), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "is_live",
            sa.Boolean(),
            sa.Computed("state IN ('starting', 'ready', 'draining')", persisted=True),
            nullable=False,
        ),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=False),
        sa.Column("checkpoint_id", sa.Text(), nullable=False),
        sa.Column("gpu_count", sa.BigInteger(), nullable=False),
        sa.Column("max_concurrency", sa.BigInteger(), nullable=False),
        sa.Column("keep_alive_s", sa.Float(precision=53), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("planned_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("end_reason", sa.Text(), nullable=True),
        sa.Column("failure_code", sa.Text(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state <> 'failed' OR failure_code IS NOT NULL", name=op.f("ck_instances_failed_says_why")
        ),
        sa.CheckConstraint(
            "state <> 'starting' OR endpoint IS NULL", name=op.f("ck_instances_starting_has_no_endpoint")
        ),
        sa.CheckConstraint(
            "state IN ('starting', 'ready', 'draining', 'stopped', 'failed')",
            name=op.f("ck_instances_state_is_known"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('ready', 'draining') OR endpoint IS NOT NULL",
            name=op.f("ck_instances_served_has_endpoint"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('ready', 'draining') OR ready_at IS NOT NULL",
            name=op.f("ck_instances_served_was_ready"),
        ),
        sa.CheckConstraint("NOT is_live OR model_id IS NOT NULL", name=op.f("ck_instances_live_has_a_model")),
        sa.CheckConstraint("epoch >= 1", name=op.f("ck_instances_epoch_is_positive")),
        sa.CheckConstraint("gpu_count >= 1", name=op.f("ck_instances_needs_a_gpu")),
        sa.CheckConstraint("is_live = (ended_at IS NULL)", name=op.f("ck_instances_ended_has_a_time")),
        sa.ForeignKeyConstraint(["host_id"], ["hosts.host_id"], name=op.f("fk_instances_host_id")),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.model_id"], name=op.f("fk_instances_model_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_instances")),
        sa.UniqueConstraint(
            "instance_id",
            "host_id",
            "epoch",
            "is_live",
            name=op.f("uq_instances_instance_id_host_id_epoch_is_live"),
        ),
    )
    op.create_index(
        "ix_instances_live_host_id",
        "instances",
        ["host_id"],
        unique=False,
        postgresql_where=sa.text("is_live"),
    )
    op.create_index(
        "ix_instances_live_model_id",
        "instances",
        ["model_id"],
        unique=False,
        postgresql_where=sa.text("is_live"),
    )
    op.create_index("ix_instances_created_at", "instances", ["created_at", "epoch"], unique=False)
    op.create_index("ix_instances_model_created_at", "instances", ["model", "created_at"], unique=False)
    op.create_index(op.f("ix_instances_model_id"), "instances", ["model_id"], unique=False)
    op.create_table(
        "migrations",
        sa.Column("migration_id", sa.Text(), nullable=False),
        sa.Column("source_instance_id", sa.Text(), nullable=False),
        sa.Column("destination_instance_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("transfer", sa.Text(), nullable=False),
        sa.Column("requests_moved", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rounds", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tokens_moved", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("bytes_moved", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("start_s", sa.Float(precision=53), server_default=sa.text("0"), nullable=False),
        sa.Column("move_s", sa.Float(precision=53), server_default=sa.text("0"), nullable=False),
        sa.Column("pause_s", sa.Float(precision=53), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "observations",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state = 'running') = (ended_at IS NULL)", name=op.f("ck_migrations_ended_has_a_time")
        ),
        sa.CheckConstraint(
            "state IN ('running', 'completed', 'cancelled', 'failed')",
            name=op.f("ck_migrations_state_is_known"),
        ),
        sa.CheckConstraint(
            "least(requests_moved, rounds, tokens_moved, bytes_moved, start_s, move_s, pause_s) >= 0",
            name=op.f("ck_migrations_figures_not_negative"),
        ),
        sa.CheckConstraint(
            "source_instance_id <> destination_instance_id", name=op.f("ck_migrations_goes_elsewhere")
        ),
        sa.ForeignKeyConstraint(
            ["destination_instance_id"],
            ["instances.instance_id"],
            name=op.f("fk_migrations_destination_instance_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["source_instance_id"],
            ["instances.instance_id"],
            name=op.f("fk_migrations_source_instance_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("migration_id", name=op.f("pk_migrations")),
    )
    op.create_index(
        op.f("ix_migrations_destination_instance_id"), "migrations", ["destination_instance_id"], unique=False
    )
    op.create_index("ix_migrations_source_instance_id", "migrations", ["source_instance_id"], unique=False)
    op.create_index(
        "uq_migrations_one_at_a_time",
        "migrations",
        ["source_instance_id"],
        unique=True,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index("ix_migrations_started_at", "migrations", ["started_at"], unique=False)
    op.create_table(
        "reservations",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("gpu_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("instance_is_live", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("reserved_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("instance_is_live", name=op.f("ck_reservations_instance_is_live")),
        sa.ForeignKeyConstraint(
            ["host_id", "gpu_index"],
            ["gpus.host_id", "gpus.gpu_index"],
            name=op.f("fk_reservations_host_id_gpu_index"),
        ),
        sa.ForeignKeyConstraint(
            ["instance_id", "host_id", "epoch", "instance_is_live"],
            ["instances.instance_id", "instances.host_id", "instances.epoch", "instances.is_live"],
            name=op.f("fk_reservations_instance_id_host_id_epoch_instance_is_live"),
        ),
        sa.PrimaryKeyConstraint("host_id", "gpu_index", name=op.f("pk_reservations")),
    )
    op.create_index("ix_reservations_instance_id", "reservations", ["instance_id"], unique=False)
    op.create_table(
        "startup_observations",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("decision_id", sa.Text(), nullable=True),
        sa.Column("host_id", sa.Text(), nullable=True),
        sa.Column("host_class", sa.Text(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=True),
        sa.Column("plans_tried", sa.BigInteger(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("bytes_moved", sa.BigInteger(), nullable=True),
        sa.Column("moving_at_unix_s", sa.Float(precision=53), nullable=True),
        sa.Column("predicted_queue_s", sa.Float(precision=53), nullable=True),
        sa.Column("predicted_download_s", sa.Float(precision=53), nullable=True),
        sa.Column("predicted_load_s", sa.Float(precision=53), nullable=True),
        sa.Column("predicted_attach_s", sa.Float(precision=53), nullable=True),
        sa.Column("predicted_control_s", sa.Float(precision=53), nullable=True),
        sa.Column("predicted_total_s", sa.Float(precision=53), nullable=True),
        sa.Column("queue_s", sa.Float(precision=53), nullable=True),
        sa.Column("download_s", sa.Float(precision=53), nullable=True),
        sa.Column("load_s", sa.Float(precision=53), nullable=True),
        sa.Column("attach_s", sa.Float(precision=53), nullable=True),
        sa.Column("control_s", sa.Float(precision=53), nullable=True),
        sa.Column("total_s", sa.Float(precision=53), nullable=True),
        sa.Column("first_token_s", sa.Float(precision=53), nullable=True),
        sa.Column("request_to_first_token_s", sa.Float(precision=53), nullable=True),
        sa.Column("prefill_s", sa.Float(precision=53), nullable=True),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "tier IN ('remote', 'ssd', 'dram')", name=op.f("ck_startup_observations_tier_is_known")
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instances.instance_id"],
            name=op.f("fk_startup_observations_instance_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("instance_id", name=op.f("pk_startup_observations")),
    )
    op.create_index(
        "ix_startup_observations_host_id_recorded_at",
        "startup_observations",
        ["host_id", "recorded_at"],
        unique=False,
    )
    op.create_index(
        "ix_startup_observations_model_recorded_at",
        "startup_observations",
        ["model", "recorded_at"],
        unique=False,
    )
    op.create_index(
        "ix_startup_observations_recorded_at", "startup_observations", ["recorded_at"], unique=False
    )

    for statement in TRIGGERS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_index("ix_startup_observations_recorded_at", table_name="startup_observations")
    op.drop_index("ix_startup_observations_model_recorded_at", table_name="startup_observations")
    op.drop_index("ix_startup_observations_host_id_recorded_at", table_name="startup_observations")
    op.drop_table("startup_observations")
    op.drop_index("ix_reservations_instance_id", table_name="reservations")
    op.drop_table("reservations")
    op.drop_index("ix_migrations_started_at", table_name="migrations")
    op.drop_index(
        "uq_migrations_one_at_a_time", table_name="migrations", postgresql_where=sa.text("state = 'running'")
    )
    op.drop_index("ix_migrations_source_instance_id", table_name="migrations")
    op.drop_index(op.f("ix_migrations_destination_instance_id"), table_name="migrations")
    op.drop_table("migrations")
    op.drop_index(op.f("ix_instances_model_id"), table_name="instances")
    op.drop_index("ix_instances_created_at", table_name="instances")
    op.drop_index("ix_instances_model_created_at", table_name="instances")
    op.drop_index("ix_instances_live_model_id", table_name="instances", postgresql_where=sa.text("is_live"))
    op.drop_index("ix_instances_live_host_id", table_name="instances", postgresql_where=sa.text("is_live"))
    op.drop_table("instances")
    op.drop_index(op.f("ix_placements_host_id"), table_name="placements")
    op.drop_table("placements")
    op.drop_index(op.f("ix_models_checkpoint_id"), table_name="models")
    op.drop_table("models")
    op.drop_table("gpus")
    op.drop_table("hosts")
    op.drop_index("ix_decisions_model_decided_at", table_name="decisions")
    op.drop_index("ix_decisions_instance_id", table_name="decisions")
    op.drop_index("ix_decisions_decided_at", table_name="decisions")
    op.drop_table("decisions")
    op.drop_table("checkpoints")
    op.drop_index("ix_audit_log_subject_at", table_name="audit_log")
    op.drop_index(op.f("ix_audit_log_at"), table_name="audit_log")
    op.drop_table("audit_log")
    op.drop_table("api_keys")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}()")
    op.execute(sa.schema.DropSequence(sa.Sequence("fencing_epoch")))
