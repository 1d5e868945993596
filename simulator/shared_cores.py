"""Hosts that are parts of one machine: what one of them computes, the others wait for.

A host of its own has none of this. The hosts of `firstlight up` on a small machine do, and a simulator that
is to say what happens there has to know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from simulator.entities import Instance, InstanceState, Request
from simulator.scenario import SharedMachine


class SharedCores:
    """How much longer work takes now, by what was measured of starts beside others."""

    def __init__(self, machine: SharedMachine) -> None:
        self._machine = machine
        self._is_told = machine.computing > 1.0 or machine.replacing > 1.0
        # When engines were bound that are not replaced yet.
        self._bound_s: list[float] = []

    def started(self, now_s: float) -> None:
        """An engine was bound: its replacement is made a little later."""
        if self._is_told:
            since_s = now_s - self._machine.replacing_until_s
            self._bound_s = [one for one in self._bound_s if one > since_s] + [now_s]

    def slowdown(self, own: Instance, instances: Iterable[Instance], *, now_s: float) -> float:
        """Times as long that work of `own` takes, if it begins now."""
        if not self._is_told:
            return 1.0
        others = (one for one in instances if one is not own)
        if any(one.requests or one.state is InstanceState.LOADING for one in others):
            return self._machine.computing
        from_s, until_s = self._machine.replacing_from_s, self._machine.replacing_until_s
        is_replacing = any(from_s <= now_s - bound_s < until_s for bound_s in self._bound_s)
        return self._machine.replacing if is_replacing else 1.0

    def held_up(
        self, own: Instance, instances: Iterable[Instance], *, now_s: float
    ) -> Iterator[tuple[Instance, Request, float]]:
        """First tokens that others compute as `own` begins, and by how many seconds they come later."""
        if not self._is_told:
            return
        for other in instances:
            for request in other.requests if other is not own else ():
                if (left_s := request.decoding_from_s - now_s) > 0:
                    yield other, request, left_s * (self._machine.computing - 1.0)
