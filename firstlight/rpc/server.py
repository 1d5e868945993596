"""A gRPC server with the options of channels.py, bound to an address the kernel may complete."""

from __future__ import annotations

import grpc

from firstlight.domain.errors import InvalidSettings
from firstlight.rpc import identity
from firstlight.rpc.call_context import Incoming
from firstlight.telemetry import tracing

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    # Two servers on one port would each get half of the calls.
    ("grpc.so_reuseport", 0),
    # Clients ask whether a silent connection still stands (see channels.py); that is no abuse.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
)


def new_server(*, is_warm_path: bool = False) -> grpc.aio.Server:
    """A server that takes up ids and traces of its callers; on the warm path only where traces are sent."""
    interceptors = [] if is_warm_path and not tracing.is_on() else [Incoming()]
    return grpc.aio.server(options=OPTIONS, interceptors=interceptors)


def bind(server: grpc.aio.Server, *, bind_address: str, port: int) -> str:
    """Bind `port`, 0 for any; the address others reach it at.

    Only roles of the fleet are let in once this process is one of them (see identity.py).
    Raises: InvalidSettings when the port is taken, or would be open to strangers.
    """
    own = identity.current()
    identity.check_listener(bind_address, own)
    where = f"{bind_address}:{port}"
    try:
        if own.is_known:
            bound = server.add_secure_port(where, own.server_credentials())
        else:
            bound = server.add_insecure_port(where)
    except RuntimeError as failure:
        raise InvalidSettings(f"cannot bind {bind_address}:{port}: {failure}") from failure
    return f"{bind_address}:{bound}"
