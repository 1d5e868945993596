"""Every error Firstlight raises on purpose, in one tree.

FirstlightError
├── InvalidInput                  the caller's request is wrong; nothing was changed
│   ├── InvalidName               a name that must not become a path, id or label
│   ├── InvalidSettings
│   ├── InvalidEstimate           an estimator input without meaning (bandwidth of zero, negative bytes)
│   ├── UnsupportedParameter      an API parameter or a value of it that is not served
│   └── ContextTooLong            prompt plus requested tokens exceed the model's context
├── NotFound
│   ├── UnknownModel
│   ├── UnknownHost
│   ├── UnknownInstance
│   └── UnknownCheckpoint         this host's store does not hold that checkpoint
├── Conflict
│   ├── ModelExists               deployed already, with other settings
│   ├── ModelBeingDeleted
│   ├── IllegalTransition         a life-cycle step the state machine forbids
│   └── StaleEpoch                fenced off: a newer owner exists
├── Overloaded                    try again later (429 or 503 with Retry-After)
│   ├── QueueFull
│   ├── NoCapacity                no host can take the start now
│   ├── StartTimeout              the start did not finish within the request's deadline
│   ├── StartFailed               every plan for the start failed
│   ├── StartAbandoned            who began the start is no more, and nobody carries it out
│   ├── DatabaseUnavailable       Postgres does not answer
│   └── InstanceDraining          the instance takes no new requests
├── SourceError                   where the model comes from
│   ├── SourceUnreachable
│   ├── PeerUnreachable           another host's store does not give it: there are others, and the source
│   ├── SourceCorrupt             unreadable, truncated or inconsistent source files
│   └── SourceUnsupported         a scheme, layout, architecture or pickle that is refused
├── CheckpointError               a checkpoint in our own format is wrong
│   ├── CheckpointMissing         a file of it does not exist
│   ├── ManifestInvalid           the manifest breaks one of its laws (field `rule` names it)
│   ├── ChecksumMismatch          a chunk's bytes differ, twice
│   └── CheckpointMismatch        same source, other bytes than the first conversion recorded
├── StorageError                  this host's disk or memory
│   ├── DiskFull                  the SSD cache cannot make room
│   ├── PoolFull                  the DRAM pool cannot make room
│   │   └── LargerThanPool        it never could: such a checkpoint is streamed to its reader
│   └── ReadFailed                the device answered with an error
├── GpuError                      the GPU's driver answered with an error (`driver_error` is its name for it)
│   ├── GpuUnavailable            no driver, no such device, or one that does not start
│   └── GpuMemoryFull             the GPU has not the memory that was asked for
├── EngineError
│   ├── EngineGone                the engine process ended or stopped answering
│   ├── EngineBusy                another model is bound, or all slots are taken
│   └── AttachFailed              the model could not be bound to its bytes
├── MigrationFailed               requests stayed at the source, which serves on
├── LaunchError                   `firstlight up` cannot start a part of itself, or keep it running
│   ├── AlreadyRunning            another `firstlight up` holds the state directory
│   └── PortTaken                 another program listens where a part of it was to listen
├── ApiUnreachable                the command line cannot reach the API
└── Cancelled                     someone asked for it to stop
"""

from __future__ import annotations

from typing import ClassVar


class FirstlightError(Exception):
    """Base of the tree. `code` is stable across releases and is what clients and retry policies name.

    `fields` are the ids and figures the message speaks of, for logs and error bodies.
    """

    code: ClassVar[str] = "internal"
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields


class InvalidInput(FirstlightError):
    code = "invalid_input"


class InvalidName(InvalidInput):
    code = "invalid_name"


class InvalidSettings(InvalidInput):
    code = "invalid_settings"


class InvalidEstimate(InvalidInput):
    code = "invalid_estimate"


class UnsupportedParameter(InvalidInput):
    code = "unsupported_parameter"


class ContextTooLong(InvalidInput):
    code = "context_length_exceeded"


class NotFound(FirstlightError):
    code = "not_found"


class UnknownModel(NotFound):
    code = "model_not_found"


class UnknownHost(NotFound):
    code = "host_not_found"


class UnknownInstance(NotFound):
    code = "instance_not_found"


class UnknownCheckpoint(NotFound):
    code = "checkpoint_not_found"


class Conflict(FirstlightError):
    code = "conflict"


class ModelExists(Conflict):
    code = "model_exists"


class ModelBeingDeleted(Conflict):
    code = "model_being_deleted"


class IllegalTransition(Conflict):
    code = "illegal_transition"


class StaleEpoch(Conflict):
    code = "stale_epoch"


class Overloaded(FirstlightError):
    code = "overloaded"
    is_retryable = True


class QueueFull(Overloaded):
    code = "queue_full"


class NoCapacity(Overloaded):
    code = "no_capacity"


class StartTimeout(Overloaded):
    code = "start_timeout"


class StartFailed(Overloaded):
    code = "start_failed"


class StartAbandoned(Overloaded):
    code = "start_abandoned"


class DatabaseUnavailable(Overloaded):
    code = "database_unavailable"


class InstanceDraining(Overloaded):
    code = "instance_draining"


class SourceError(FirstlightError):
    code = "source_error"


class SourceUnreachable(SourceError):
    code = "source_unreachable"
    is_retryable = True


class PeerUnreachable(SourceError):
    code = "peer_unreachable"
    is_retryable = True


class SourceCorrupt(SourceError):
    code = "source_corrupt"


class SourceUnsupported(SourceError):
    code = "source_unsupported"


class CheckpointError(FirstlightError):
    code = "checkpoint_error"


class CheckpointMissing(CheckpointError):
    code = "checkpoint_missing"


class ManifestInvalid(CheckpointError):
    """`rule` names the law that was broken: overlap, gap, overflow, negative, out_of_file, wrong_size,
    duplicate_name, bad_path, bad_alias, bad_dtype, bad_digest, bad_version, malformed, bad_chunks."""

    code = "manifest_invalid"

    def __init__(self, message: str, *, rule: str, **fields: object) -> None:
        super().__init__(message, rule=rule, **fields)
        self.rule = rule


class ChecksumMismatch(CheckpointError):
    code = "checksum_mismatch"


class CheckpointMismatch(CheckpointError):
    code = "checkpoint_mismatch"


class StorageError(FirstlightError):
    code = "storage_error"


class DiskFull(StorageError):
    code = "disk_full"


class PoolFull(StorageError):
    code = "pool_full"
    is_retryable = True


class LargerThanPool(PoolFull):
    code = "larger_than_pool"
    is_retryable = False


class ReadFailed(StorageError):
    code = "read_failed"
    is_retryable = True


class GpuError(FirstlightError):
    code = "gpu_error"


class GpuUnavailable(GpuError):
    code = "gpu_unavailable"


class GpuMemoryFull(GpuError):
    code = "gpu_memory_full"
    is_retryable = True


class EngineError(FirstlightError):
    code = "engine_error"


class EngineGone(EngineError):
    code = "engine_gone"
    is_retryable = True


class EngineBusy(EngineError):
    code = "engine_busy"
    is_retryable = True


class AttachFailed(EngineError):
    code = "attach_failed"


class MigrationFailed(FirstlightError):
    code = "migration_failed"


class LaunchError(FirstlightError):
    code = "launch_error"


class AlreadyRunning(LaunchError):
    code = "already_running"


class PortTaken(LaunchError):
    code = "port_taken"


class ApiUnreachable(FirstlightError):
    code = "api_unreachable"
    is_retryable = True


class Cancelled(FirstlightError):
    code = "cancelled"


def _tree(root: type[FirstlightError]) -> dict[str, type[FirstlightError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def error_type(code: str) -> type[FirstlightError]:
    """The class that carries `code`, or `FirstlightError` for a code of another release."""
    return _tree(FirstlightError).get(code, FirstlightError)
