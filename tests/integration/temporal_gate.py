"""A door before a Temporal server: TLS, certificates of clients or an API key, as a cluster of others has it.

The server that tests bring along has neither. Every call is handed on as it came, so that what passes is
what a real server would have been asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

_UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
# What gRPC itself sets anew on the way on.
_OURS = ("user-agent", "grpc-")


@dataclass
class Gate(grpc.GenericRpcHandler):
    """`asked` are the calls that came in, by name and with their metadata."""

    there: grpc.aio.Channel
    api_key: str | None
    address: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    # Any: as grpc-stubs declare it.
    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method

        async def pass_on(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            return await self._pass_on(method, request, context)

        # All calls of Temporal are one message each way; without serializers they stay bytes.
        return grpc.unary_unary_rpc_method_handler(pass_on)  # type: ignore[arg-type, return-value]

    async def _pass_on(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        metadata = [(name, value) for name, value in context.invocation_metadata() or ()]
        self.asked.append((method, {name: str(value) for name, value in metadata}))
        if self.api_key is not None and ("authorization", f"Bearer {self.api_key}") not in metadata:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request unauthorized.")
        call = self.there.unary_unary(method)(
            request,
            metadata=[pair for pair in metadata if not pair[0].startswith(_OURS)],
            timeout=context.time_remaining(),
        )
        try:
            return bytes(await call)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata()))
            raise AssertionError("an aborted call ends there") from error


@asynccontextmanager
async def gate_before(
    temporal: str, certificates: Path, *, asks_certificates: bool = True, api_key: str | None = None
) -> AsyncIterator[Gate]:
    """Its `address` is the only way that the settings of a test name."""
    async with grpc.aio.insecure_channel(temporal, options=_UNBOUNDED) as there:
        gate = Gate(there, api_key)
        server = grpc.aio.server(options=_UNBOUNDED)
        server.add_generic_rpc_handlers((gate,))
        credentials = grpc.ssl_server_credentials(
            [((certificates / "key.pem").read_bytes(), (certificates / "cert.pem").read_bytes())],
            root_certificates=(certificates / "ca.pem").read_bytes() if asks_certificates else None,
            require_client_auth=asks_certificates,
        )
        gate.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        await server.start()
        try:
            yield gate
        finally:
            await server.stop(grace=0)
