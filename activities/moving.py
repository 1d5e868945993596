"""move_requests: the token rounds of a migration, engine to engine; this host only starts and follows them.

A dead attempt has moved some of the requests; the next one moves what is left. Nothing is ever lost by it:
a request is at the source until the moment it is handed over.
"""

from __future__ import annotations

import time
from collections import defaultdict

from activities.heartbeat import Heart
from activities.telling import Teller
from firstlight.contracts.migrations import MoveInput, MoveReceipt, RoundRow
from firstlight.contracts.progress import MoveProgress
from firstlight.domain.migration import OBSERVATIONS_AT_MOST
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from firstlight.rpc.engine_pb2 import MigrateOutRequest, MigrationEvent


async def move_requests(channels: Channels, request: MoveInput, heart: Heart, teller: Teller) -> MoveReceipt:
    """Raises: EngineGone when the source dies, StaleEpoch, Conflict when another migration moves it."""
    began_s = time.monotonic()
    tally = Tally()
    client = InferenceClient(channels, request.source.endpoint)
    with teller.telling(lambda: tally.progress(request, move_s=time.monotonic() - began_s)):
        async for event in client.migrate_out(_order(request)):
            tally.add(event)
            heart.note(phase=f"{event.kind} {event.round}", bytes_done=tally.sent_bytes)
    return tally.receipt(elapsed_s=time.monotonic() - began_s)


def _order(request: MoveInput) -> MigrateOutRequest:
    return MigrateOutRequest(
        epoch=request.source.epoch,
        migration_id=request.migration_id,
        destination_instance_id=request.destination.instance_id,
        destination_endpoint=request.destination.endpoint,
        destination_epoch=request.destination.epoch,
        transfer=request.transfer,
        delta_tokens=request.delta_tokens,
    )


class Tally:
    """Events of many requests, summed by round and by outcome."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._rounds: dict[int, list[MigrationEvent]] = defaultdict(list)
        self._fates: dict[str, int] = defaultdict(int)
        self._held_s = 0.0
        self._error = ""
        self._left = 0
        self._observations: list[list[float]] = []

    def add(self, event: MigrationEvent) -> None:
        self._left = event.left
        if event.kind == "round":
            self._rounds[event.round].append(event)
            self.sent_bytes += event.sent_bytes
            return
        self._fates[event.kind] += 1
        self._held_s = max(self._held_s, event.held_s)
        self._error = self._error or event.error
        if event.kind == "handed_over" and len(self._observations) < OBSERVATIONS_AT_MOST:
            self._observations.append([event.tokens, event.seconds])

    def progress(self, request: MoveInput, *, move_s: float) -> MoveProgress:
        return MoveProgress(
            migration_id=request.migration_id,
            source_instance_id=request.source.instance_id,
            source_epoch=request.source.epoch,
            move_s=move_s,
            rounds=len(self._rounds),
            tokens=sum(event.tokens for events in self._rounds.values() for event in events),
            sent_bytes=self.sent_bytes,
            moved=self._fates["handed_over"] + self._fates["moved_waiting"],
            left=self._left,
        )

    def receipt(self, *, elapsed_s: float) -> MoveReceipt:
        return MoveReceipt(
            rounds=[
                RoundRow(
                    round=number,
                    requests=len(events),
                    tokens=sum(event.tokens for event in events),
                    sent_bytes=sum(event.sent_bytes for event in events),
                    seconds=max(event.seconds for event in events),
                )
                for number, events in sorted(self._rounds.items())
            ],
            handed_over=self._fates["handed_over"],
            moved_waiting=self._fates["moved_waiting"],
            ended=self._fates["ended"],
            failed=self._fates["failed"],
            held_s=self._held_s,
            elapsed_s=elapsed_s,
            error=self._error,
            observations=self._observations,
        )
