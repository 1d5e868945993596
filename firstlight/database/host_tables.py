"""`hosts`, `gpus` and `placements`: the machines, and what of which checkpoint lies where."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, func, text
from sqlalchemy.orm import Mapped, mapped_column

from firstlight.database.base import Base, JsonDocument, one_of
from firstlight.domain.fleet import Tier
from firstlight.domain.lifecycle import HostState, PlacementState


class HostRow(Base):
    """One GPU host. `registration` grows with every registration and fences off older ones."""

    __tablename__ = "hosts"
    __table_args__ = (
        CheckConstraint(one_of("state", HostState), name="state_is_known"),
        CheckConstraint("registration >= 1", name="registration_is_positive"),
        CheckConstraint("(state = 'lost') = (lost_at IS NOT NULL)", name="lost_has_a_time"),
        CheckConstraint(
            "dram_capacity_bytes >= 0 AND ssd_capacity_bytes >= 0 AND ssd_read_bytes_per_s >= 0 "
            "AND dram_to_gpu_bytes_per_s >= 0",
            name="capacities_not_negative",
        ),
    )

    host_id: Mapped[str] = mapped_column(primary_key=True)
    host_class: Mapped[str]
    host_address: Mapped[str]
    store_address: Mapped[str]
    state: Mapped[str]
    registration: Mapped[int]
    lease_expires_at: Mapped[datetime]
    renewed_at: Mapped[datetime]
    registered_at: Mapped[datetime] = mapped_column(server_default=func.now())
    lost_at: Mapped[datetime | None]
    ssd_capacity_bytes: Mapped[int]
    dram_capacity_bytes: Mapped[int]
    # What the store's probe measured; 0: not yet, or no such device.
    ssd_read_bytes_per_s: Mapped[float]
    dram_to_gpu_bytes_per_s: Mapped[float] = mapped_column(server_default=text("0"))
    # {"ssd_to_dram": {"overhead_s": …, "bandwidth_bytes_per_s": …, "observations": …}, …}
    edges: Mapped[JsonDocument] = mapped_column(server_default=text("'{}'::jsonb"))
    # host:port where other stores may fetch from; empty: they may not.
    peer_endpoint: Mapped[str] = mapped_column(server_default=text("''"))


class GpuRow(Base):
    """One GPU of a host, or one engine slot where there is none."""

    __tablename__ = "gpus"
    __table_args__ = (
        CheckConstraint("gpu_index >= 0", name="index_not_negative"),
        CheckConstraint("memory_bytes >= 0", name="memory_not_negative"),
    )

    host_id: Mapped[str] = mapped_column(ForeignKey("hosts.host_id", ondelete="CASCADE"), primary_key=True)
    gpu_index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    memory_bytes: Mapped[int]
    # As its driver says it; "": a slot on a host without GPUs.
    name: Mapped[str] = mapped_column(server_default=text("''"))


class PlacementRow(Base):
    """A checkpoint in one tier of one host, as last reported."""

    __tablename__ = "placements"
    __table_args__ = (
        CheckConstraint(one_of("tier", (Tier.SSD, Tier.DRAM)), name="tier_is_local"),
        CheckConstraint(one_of("state", PlacementState), name="state_is_known"),
        CheckConstraint("size_bytes >= 0", name="size_not_negative"),
    )

    checkpoint_id: Mapped[str] = mapped_column(
        ForeignKey("checkpoints.checkpoint_id", ondelete="CASCADE"), primary_key=True
    )
    host_id: Mapped[str] = mapped_column(
        ForeignKey("hosts.host_id", ondelete="CASCADE"), primary_key=True, index=True
    )
    tier: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    size_bytes: Mapped[int]
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
