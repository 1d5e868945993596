"""Activities that decide what stays warm: advice read from Postgres, and a look ahead that sends hints."""

from __future__ import annotations

import time

from temporalio import activity
from temporalio.client import Client

from activities.errors import answering
from activities.looking_ahead import LookAhead
from firstlight.contracts.warmth import (
    KeepAliveInput,
    KeepAliveReceipt,
    LookAheadInput,
    LookAheadReceipt,
    WarmthActivities,
)
from firstlight.database.connection import Database
from firstlight.database.model_lives import read_life
from firstlight.domain.autoscaling.choice import keep_alive_policy
from firstlight.rpc.channels import Channels
from firstlight.settings import Settings

# An instance that was brought back ahead of need is looked at again after so long: once it has served, it is
# one like any other.
PREWARMED_LOOK_S = 60.0


class Warmth(WarmthActivities):
    def __init__(self, *, database: Database, client: Client, settings: Settings) -> None:
        self._database = database
        self._client = client
        self._settings = settings
        self._policy = keep_alive_policy(settings.keep_alive_policy, longest_s=settings.keep_alive_longest_s)

    @activity.defn(name="decide_keep_alive")
    @answering
    async def decide_keep_alive(self, request: KeepAliveInput) -> KeepAliveReceipt:
        async with self._database.session() as session:
            found = await read_life(session, request.instance_id, epoch=request.epoch)
        window = self._policy.window(found.life)
        quiet_s = found.life.history.idle_s(time.time())
        keep_s = window.release_s
        if quiet_s is not None and window.prewarm_s > 0 and window.is_held(quiet_s + PREWARMED_LOOK_S):
            keep_s = request.idle_s + min(PREWARMED_LOOK_S, window.ends_s - quiet_s)
        if found.is_further and keep_s > self._settings.scale_in_after_s:
            return KeepAliveReceipt(self._settings.scale_in_after_s, "the model has another instance")
        return KeepAliveReceipt(keep_s, window.basis)

    @activity.defn(name="look_ahead")
    @answering
    async def look_ahead(self, request: LookAheadInput) -> LookAheadReceipt:
        async with Channels() as channels:
            look = LookAhead(
                database=self._database,
                client=self._client,
                channels=channels,
                policy=self._policy,
                settings=self._settings,
            )
            return LookAheadReceipt(await look.run(now_unix_s=time.time()))
