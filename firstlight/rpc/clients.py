"""Typed async clients of the host services: a failed call raises an error of our own tree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TypeVar

import grpc

from firstlight.domain.errors import EngineGone
from firstlight.rpc import engine_pb2, host_pb2, store_pb2
from firstlight.rpc.call_context import Metadata, call_metadata, trace_metadata
from firstlight.rpc.channels import Channels
from firstlight.rpc.engine_pb2_grpc import InferenceStub
from firstlight.rpc.host_pb2_grpc import HostStub
from firstlight.rpc.status import error_from
from firstlight.rpc.store_pb2_grpc import StoreStub

Request = TypeVar("Request")
Message = TypeVar("Message")


async def _answer(call: Awaitable[Message], *, peer: str) -> Message:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_from(failure, peer=peer) from failure
    except asyncio.CancelledError:
        check_closed(peer)
        raise


async def _stream(
    method: grpc.aio.UnaryStreamMultiCallable[Request, Message],
    request: Request,
    *,
    peer: str,
    metadata: Metadata | None,
) -> AsyncIterator[Message]:
    call = method(request, metadata=metadata)
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as failure:
        raise error_from(failure, peer=peer) from failure
    except asyncio.CancelledError:
        check_closed(peer)
        raise
    finally:
        # A caller that stops reading (or is cancelled) must not leave the call open on the server.
        call.cancel()


def check_closed(peer: str) -> None:
    """A channel that is closed under a call ends it as if its caller had been cancelled, and nobody was.

    Taken for a cancellation it would end the caller's whole task without a word. Raises: EngineGone.
    """
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise EngineGone(f"the connection to {peer} was closed", peer=peer) from None


class StoreClient:
    """The checkpoint store at `address`. See store.proto for what each call promises."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._stub = StoreStub(channels.to(address))
        self._peer = f"store {address}"

    async def prepare(
        self,
        *,
        checkpoint_id: str,
        instance_id: str = "",
        decided_at_unix_s: float = 0.0,
        source: str = "",
        dtype: str = "",
        expected_digest: str = "",
        peer_endpoints: Sequence[str] = (),
        ahead: bool = False,
        timeout_s: float = 2.0,
    ) -> store_pb2.PrepareReply:
        """With a source, what is absent begins to be downloaded too. `ahead` of need, it gives way."""
        request = store_pb2.PrepareRequest(
            checkpoint_id=checkpoint_id,
            instance_id=instance_id,
            decided_at_unix_s=decided_at_unix_s,
            source=source,
            dtype=dtype,
            expected_digest=expected_digest,
            peer_endpoints=list(peer_endpoints),
            ahead=ahead,
        )
        return await self.hint(request, timeout_s=timeout_s)

    async def hint(
        self, request: store_pb2.PrepareRequest, *, timeout_s: float = 2.0
    ) -> store_pb2.PrepareReply:
        """`prepare`, in the words of the protocol."""
        return await _answer(
            self._stub.Prepare(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    def download(
        self,
        *,
        checkpoint_id: str,
        source: str,
        dtype: str,
        expected_digest: str = "",
        peer_endpoints: Sequence[str] = (),
        into_dram: bool = False,
    ) -> AsyncIterator[store_pb2.DownloadProgress]:
        """Progress until the checkpoint is on SSD; closing the iterator does not stop the download."""
        request = store_pb2.DownloadRequest(
            checkpoint_id=checkpoint_id,
            source=source,
            dtype=dtype,
            expected_digest=expected_digest,
            peer_endpoints=list(peer_endpoints),
            into_dram=into_dram,
        )
        return _stream(self._stub.Download, request, peer=self._peer, metadata=call_metadata())

    def load(self, checkpoint_id: str, *, since_unix_s: float = 0.0) -> AsyncIterator[store_pb2.LoadProgress]:
        """Progress until the checkpoint is in DRAM; the last message has `done`.

        A load that a hint began after `since_unix_s` and that has ended is told with its own figures.
        """
        request = store_pb2.LoadRequest(checkpoint_id=checkpoint_id, since_unix_s=since_unix_s)
        return _stream(self._stub.Load, request, peer=self._peer, metadata=call_metadata())

    async def get_files(self, checkpoint_id: str, *, timeout_s: float = 30.0) -> store_pb2.GetFilesReply:
        request = store_pb2.GetFilesRequest(checkpoint_id=checkpoint_id)
        return await _answer(
            self._stub.GetFiles(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    async def inventory(self, *, timeout_s: float = 5.0) -> store_pb2.InventoryReply:
        return await _answer(
            self._stub.Inventory(store_pb2.InventoryRequest(), timeout=timeout_s, metadata=call_metadata()),
            peer=self._peer,
        )

    async def expect(
        self, need: Mapping[str, float], *, good_for_s: float, timeout_s: float = 2.0
    ) -> store_pb2.ExpectReply:
        request = store_pb2.ExpectRequest(need=dict(need), good_for_s=good_for_s)
        return await _answer(
            self._stub.Expect(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    async def remove(
        self, checkpoint_id: str, *, only_dram: bool = False, timeout_s: float = 30.0
    ) -> store_pb2.RemoveReply:
        request = store_pb2.RemoveRequest(checkpoint_id=checkpoint_id, only_dram=only_dram)
        return await _answer(
            self._stub.Remove(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )


class HostClient:
    """The supervisor at `address`. See host.proto for what each call promises."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._stub = HostStub(channels.to(address))
        self._peer = f"host {address}"

    async def attach(
        self,
        *,
        instance_id: str,
        epoch: int,
        model: str,
        checkpoint_id: str,
        gpu_indices: Sequence[int],
        max_concurrency: int,
        context_length: int = 0,
        is_ahead: bool = False,
        timeout_s: float = 60.0,
    ) -> host_pb2.AttachReply:
        request = host_pb2.AttachRequest(
            instance_id=instance_id,
            epoch=epoch,
            model=model,
            checkpoint_id=checkpoint_id,
            gpu_indices=list(gpu_indices),
            max_concurrency=max_concurrency,
            context_length=context_length,
            is_ahead=is_ahead,
        )
        return await _answer(
            self._stub.Attach(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    async def stop(
        self,
        *,
        instance_id: str,
        epoch: int,
        drain_timeout_s: float,
        reason: str,
        timeout_s: float | None = None,
    ) -> host_pb2.StopReply:
        request = host_pb2.StopRequest(
            instance_id=instance_id, epoch=epoch, drain_timeout_s=drain_timeout_s, reason=reason
        )
        limit_s = drain_timeout_s + 15.0 if timeout_s is None else timeout_s
        return await _answer(
            self._stub.Stop(request, timeout=limit_s, metadata=call_metadata()), peer=self._peer
        )

    async def list_engines(self, *, timeout_s: float = 5.0) -> host_pb2.ListEnginesReply:
        return await _answer(
            self._stub.ListEngines(
                host_pb2.ListEnginesRequest(), timeout=timeout_s, metadata=call_metadata()
            ),
            peer=self._peer,
        )

    async def prepare_engine(
        self, *, checkpoint_id: str, instance_id: str = "", timeout_s: float = 2.0
    ) -> host_pb2.PrepareEngineReply:
        request = host_pb2.PrepareEngineRequest(checkpoint_id=checkpoint_id, instance_id=instance_id)
        return await _answer(
            self._stub.PrepareEngine(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    async def keep_warm(
        self,
        *,
        architecture_s: Mapping[str, float],
        spare_s: float | None,
        good_for_s: float,
        timeout_s: float = 2.0,
    ) -> host_pb2.KeepWarmReply:
        request = host_pb2.KeepWarmRequest(
            architecture_s=dict(architecture_s), spare_s=spare_s, good_for_s=good_for_s
        )
        return await _answer(
            self._stub.KeepWarm(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )


class InferenceClient:
    """One engine at `address`. See engine.proto for what each call promises."""

    def __init__(self, channels: Channels, address: str) -> None:
        self._stub = InferenceStub(channels.to(address))
        self._peer = f"engine {address}"

    def generate(self, request: engine_pb2.GenerateRequest) -> AsyncIterator[engine_pb2.GenerateChunk]:
        """Tokens until the request ends; closing the iterator cancels it and frees its slot."""
        return _stream(self._stub.Generate, request, peer=self._peer, metadata=trace_metadata())

    def embed(self, request: engine_pb2.EmbedRequest) -> AsyncIterator[engine_pb2.EmbedChunk]:
        """A vector for each input; closing the iterator cancels the rest."""
        return _stream(self._stub.Embed, request, peer=self._peer, metadata=trace_metadata())

    async def status(self, *, timeout_s: float = 5.0) -> engine_pb2.EngineStatusReply:
        return await _answer(
            self._stub.Status(engine_pb2.EngineStatusRequest(), timeout=timeout_s, metadata=call_metadata()),
            peer=self._peer,
        )

    async def wait_idle(
        self, *, epoch: int, idle_s: float, timeout_s: float | None = None
    ) -> engine_pb2.WaitIdleReply:
        request = engine_pb2.WaitIdleRequest(epoch=epoch, idle_s=idle_s)
        return await _answer(
            self._stub.WaitIdle(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    async def drain(self, *, epoch: int, timeout_s: float) -> engine_pb2.DrainReply:
        request = engine_pb2.DrainRequest(epoch=epoch, timeout_s=timeout_s)
        return await _answer(
            self._stub.Drain(request, timeout=timeout_s + 5.0, metadata=call_metadata()), peer=self._peer
        )

    def migrate_out(self, request: engine_pb2.MigrateOutRequest) -> AsyncIterator[engine_pb2.MigrationEvent]:
        """Events until every request has moved; closing the iterator keeps the rest at the source."""
        return _stream(self._stub.MigrateOut, request, peer=self._peer, metadata=call_metadata())

    async def receive_session(
        self, parts: AsyncIterator[engine_pb2.SessionPart], *, timeout_s: float
    ) -> engine_pb2.SessionReply:
        return await _answer(
            self._stub.ReceiveSession(parts, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )

    async def drop_session(
        self, *, session_id: str, epoch: int, timeout_s: float = 2.0
    ) -> engine_pb2.DropSessionReply:
        request = engine_pb2.DropSessionRequest(session_id=session_id, epoch=epoch)
        return await _answer(
            self._stub.DropSession(request, timeout=timeout_s, metadata=call_metadata()), peer=self._peer
        )
