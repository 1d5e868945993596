"""Messages of `InstanceLifecycle`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InstanceInput:
    instance_id: str
    epoch: int
    host_id: str
    model: str
    endpoint: str
    keep_alive_s: float
    # Stop reason asked for before a continue-as-new, if any.
    stop_reason: str = ""
    stop_drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class StopSignal:
    """Ask an instance to stop: `reason` is shown to operators (delete, scale-down, drain …)."""

    reason: str
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class KeepAliveSignal:
    """The model's keep-alive time was changed while the instance runs."""

    keep_alive_s: float


@dataclass(frozen=True, slots=True)
class WatchInput:
    instance_id: str
    epoch: int
    endpoint: str
    keep_alive_s: float
    # The watch comes back after so long even if nothing happened, so that its workflow can renew itself.
    at_most_s: float = 3600.0
    # The instance is needed though idle (its model's minimum): watch only for its exit.
    ignore_idle: bool = False


@dataclass(frozen=True, slots=True)
class WatchReceipt:
    # idle | exited | elapsed: what ended the watch
    ended_by: str
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BeginDrainInput:
    instance_id: str
    epoch: int
    reason: str
    # Scale to zero only when the model may go below this many instances (its min_instances).
    respect_minimum: bool = False


@dataclass(frozen=True, slots=True)
class BeginDrainReceipt:
    # False: the instance is needed (minimum) or no longer ready; keep watching or end.
    draining: bool
    state: str


@dataclass(frozen=True, slots=True)
class StopInstanceInput:
    instance_id: str
    epoch: int
    drain_timeout_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class FinishInput:
    """Release the GPUs and close the row. `outcome` is stopped or failed."""

    instance_id: str
    epoch: int
    outcome: str
    reason: str
    failure_code: str = ""
