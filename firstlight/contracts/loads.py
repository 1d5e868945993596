"""What an engine has to do, as it says itself: the figures that decide whether its instance may give way."""

from __future__ import annotations

from dataclasses import dataclass

# An instance has a moment after its start, and after each request, before anybody may call it idle: its next
# request may be on its way to it already.
IDLE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """`idle_s` is None while it has anything to do; `tokens` are those of its running requests so far."""

    instance_id: str
    requests: int
    tokens: int
    idle_s: float | None
