"""gRPC channels, one per address and event loop, with options fit for a host's loopback or rack network."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import grpc

from firstlight.rpc import identity

# A restarted peer is found within a second: gRPC's own back-off would reach two minutes.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_send_message_length", 64 * 2**20),
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # No pause but what one attempt to connect has for it: a busy machine needs more than some milliseconds.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Two roles with the same target must not share (and break) one TCP connection.
    ("grpc.use_local_subchannel_pool", 1),
)


# A peer that is cut off sends nothing, no end either: a stream would wait for ever. Asked so often, it must
# answer within as long; long enough for a machine that is busy to its last core.
SILENT_S = 15.0


class Channels:
    """Open channels by address. Owned by a composition root, which closes it; not shared between loops.

    Calls to a peer that does not even acknowledge for twice `silent_s` end with EngineGone.
    """

    def __init__(self, *, silent_s: float = SILENT_S) -> None:
        silent_ms = round(silent_s * 1000)
        self._options = (
            *OPTIONS,
            ("grpc.keepalive_time_ms", silent_ms),
            ("grpc.keepalive_timeout_ms", silent_ms),
            # The same again: it would be a minute of its own.
            ("grpc.http2.ping_timeout_ms", silent_ms),
            ("grpc.http2.max_pings_without_data", 0),
        )
        self._open: dict[str, grpc.aio.Channel] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to `host:port`, opened at its first use."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop:
            raise RuntimeError("Channels belongs to another event loop")
        self._loop = loop
        if address not in self._open:
            self._open[address] = self._channel(address)
        return self._open[address]

    def connect(self, address: str) -> None:
        """Begin to connect to `host:port` for a call that is about to come; returns at once."""
        self.to(address).get_state(try_to_connect=True)

    def _channel(self, address: str) -> grpc.aio.Channel:
        own = identity.current()
        if not own.is_known:
            return grpc.aio.insecure_channel(address, options=self._options)
        # The certificate says who is there, not where: engines come and go on ports of the kernel's choice.
        options = (*self._options, ("grpc.ssl_target_name_override", identity.NAME))
        return grpc.aio.secure_channel(address, own.channel_credentials(), options=options)

    async def forget(self, address: str, *, grace_s: float | None = None) -> None:
        """Close the channel to an address that will not be used again (an engine that ended).

        Calls under way have `grace_s` to end by themselves; then they end with EngineGone.
        """
        if (channel := self._open.pop(address, None)) is not None:
            await channel.close(grace_s)

    async def close(self) -> None:
        channels, self._open = list(self._open.values()), {}
        for channel in channels:
            await channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
