"""The error tree: stable codes, one per class, and both ways across gRPC."""

from __future__ import annotations

import grpc
import pytest

from firstlight.domain import errors
from firstlight.rpc.status import CODE_KEY, error_from, metadata_of, status_of


def every_class(root: type[errors.FirstlightError]) -> list[type[errors.FirstlightError]]:
    return [root, *(found for child in root.__subclasses__() for found in every_class(child))]


CLASSES = [kind for kind in every_class(errors.FirstlightError) if kind.__module__ == errors.__name__]


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in CLASSES]
    assert len(codes) == len(set(codes))


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    assert [kind.__name__ for kind in CLASSES if kind.__name__ not in drawn] == []


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_survives_the_wire(kind: type[errors.FirstlightError]) -> None:
    error = kind("said", rule="overlap") if kind is errors.ManifestInvalid else kind("said")
    metadata = grpc.aio.Metadata(*metadata_of(error))
    received = error_from(
        grpc.aio.AioRpcError(status_of(error), grpc.aio.Metadata(), metadata, "said"), peer="store"
    )
    assert type(received) is kind
    assert received.message == "said"
    assert dict(metadata_of(error))[CODE_KEY] == kind.code


def test_a_peer_that_is_not_there_is_named() -> None:
    failure = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "refused"
    )
    received = error_from(failure, peer="engine at 127.0.0.1:1")
    assert isinstance(received, errors.EngineGone)
    assert "engine at 127.0.0.1:1" in received.message
