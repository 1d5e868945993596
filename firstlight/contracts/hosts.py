"""Messages of `HostLifecycle` and `FleetReconciler`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HostInput:
    host_id: str
    # Registration number of the host; a watch of an older one ends at once.
    registration: int


@dataclass(frozen=True, slots=True)
class HostRegistered:
    """Signal: the host agent (re)registered."""

    registration: int


@dataclass(frozen=True, slots=True)
class LeaseWatchInput:
    host_id: str
    registration: int
    # The watch comes back after so long even if nothing happened, so that its workflow can renew itself.
    at_most_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class LeaseWatchReceipt:
    # expired | superseded | elapsed
    ended_by: str


@dataclass(frozen=True, slots=True)
class FailHostInput:
    host_id: str
    registration: int
    reason: str


@dataclass(frozen=True, slots=True)
class FailHostReceipt:
    marked: bool
    failed_instances: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReconcileInput:
    # Starts older than this without a running workflow are given up.
    stale_start_s: float = 30.0
    # Hosts still to be looked at after a continue-as-new; None: all.
    remaining: list[str] | None = None
    # Known from the first run's list of hosts.
    consolidates: bool = False


@dataclass(frozen=True, slots=True)
class HostList:
    host_ids: list[str] = field(default_factory=list)
    # Whether nearly idle hosts are to be emptied.
    consolidates: bool = False


@dataclass(frozen=True, slots=True)
class ConsolidateInput:
    """Nothing is asked: the fleet is in Postgres, the bound in the worker's settings."""


@dataclass(frozen=True, slots=True)
class ConsolidateReceipt:
    # One sentence per instance that moves, or why it does not.
    done: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class InventoryInput:
    host_id: str


@dataclass(frozen=True, slots=True)
class StoredRow:
    checkpoint_id: str
    size_bytes: int
    on_ssd: bool
    in_dram: bool
    quarantined: bool
    manifest_digest: str


@dataclass(frozen=True, slots=True)
class EngineRow:
    instance_id: str
    epoch: int
    state: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class HostReport:
    host_id: str
    stored: list[StoredRow] = field(default_factory=list)
    engines: list[EngineRow] = field(default_factory=list)
    taken_at_unix_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MendInput:
    report: HostReport
    stale_start_s: float = 30.0


@dataclass(frozen=True, slots=True)
class EngineToStop:
    instance_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class MendReceipt:
    # One sentence per thing that was put right.
    mended: list[str] = field(default_factory=list)
    # Engines without a live row: the reconciler stops them on their host.
    orphans: list[EngineToStop] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReconcileResult:
    hosts: int
    unreachable: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)
