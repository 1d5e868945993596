"""Decisions on warmth that follow a script; without one, the answer is the model's own keep-alive time."""

from __future__ import annotations

from scripted_activities import Script
from temporalio import activity

from activities.errors import answering
from firstlight.contracts import warmth


class ScriptedWarmth(warmth.WarmthActivities):
    def __init__(self) -> None:
        self.script = Script()
        # The model's setting; a test that tells an instance another time changes it as the API would.
        self.keep_alive_s = 300.0

    @activity.defn(name="decide_keep_alive")
    @answering
    async def decide_keep_alive(self, request: warmth.KeepAliveInput) -> warmth.KeepAliveReceipt:
        fixed = warmth.KeepAliveReceipt(self.keep_alive_s, "fixed")
        return await self.script.play("decide_keep_alive", request, fixed)

    @activity.defn(name="look_ahead")
    @answering
    async def look_ahead(self, request: warmth.LookAheadInput) -> warmth.LookAheadReceipt:
        return await self.script.play("look_ahead", request, warmth.LookAheadReceipt())
