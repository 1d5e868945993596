"""Errors across gRPC, both ways: our error tree to a status with trailing metadata, and back.

The message travels as the status details, the stable code as metadata `firstlight-code`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc

from firstlight.domain import errors

CODE_KEY = "firstlight-code"
RULE_KEY = "firstlight-rule"

_STATUS: tuple[tuple[type[errors.FirstlightError], grpc.StatusCode], ...] = (
    (errors.StaleEpoch, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Overloaded, grpc.StatusCode.UNAVAILABLE),
    (errors.SourceUnreachable, grpc.StatusCode.UNAVAILABLE),
    (errors.PeerUnreachable, grpc.StatusCode.UNAVAILABLE),
    (errors.SourceError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.CheckpointError, grpc.StatusCode.DATA_LOSS),
    (errors.StorageError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.GpuMemoryFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.GpuError, grpc.StatusCode.UNAVAILABLE),
    (errors.EngineBusy, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.EngineError, grpc.StatusCode.UNAVAILABLE),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
)


def status_of(error: errors.FirstlightError) -> grpc.StatusCode:
    """The gRPC status an error travels as; the first matching row of the table."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return grpc.StatusCode.INTERNAL


def metadata_of(error: errors.FirstlightError) -> Sequence[tuple[str, str]]:
    rows = [(CODE_KEY, error.code)]
    if isinstance(error, errors.ManifestInvalid):
        rows.append((RULE_KEY, error.rule))
    return rows


# Any: grpc.aio's ServicerContext is generic in messages this mapping never looks at.
async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: errors.FirstlightError) -> NoReturn:
    """End a served call with `error`. Never returns."""
    await context.abort(status_of(error), error.message, tuple(metadata_of(error)))
    raise AssertionError("abort returns never")


@asynccontextmanager
async def answering(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Wrap a servicer's body: an error of our tree ends the call with its status and code."""
    try:
        yield
    except errors.FirstlightError as error:
        await abort_with(context, error)


def error_from(failure: grpc.aio.AioRpcError, *, peer: str) -> errors.FirstlightError:
    """The error a failed call stands for; a peer that is not there is EngineGone-like: see `peer`.

    Raises nothing. A status without our code becomes EngineGone (UNAVAILABLE), StartTimeout
    (DEADLINE_EXCEEDED), Cancelled or FirstlightError.
    """
    # Any: grpc's stubs type one metadatum as an opaque class, though it is a (key, value) pair.
    pairs: Any = failure.trailing_metadata() or ()
    trailing = {str(key): str(value) for key, value in pairs}
    message = failure.details() or failure.code().name
    if (code := trailing.get(CODE_KEY)) is not None:
        kind = errors.error_type(code)
        if kind is errors.ManifestInvalid:
            return errors.ManifestInvalid(message, rule=trailing.get(RULE_KEY, "malformed"), peer=peer)
        return kind(message, peer=peer)
    if failure.code() is grpc.StatusCode.UNAVAILABLE:
        return errors.EngineGone(f"{peer} is not answering: {message}", peer=peer)
    if failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.StartTimeout(f"{peer} did not answer in time", peer=peer)
    if failure.code() is grpc.StatusCode.CANCELLED:
        return errors.Cancelled(f"call to {peer} was cancelled", peer=peer)
    return errors.FirstlightError(f"{peer}: {message}", peer=peer)
