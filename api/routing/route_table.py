"""All lanes, kept in step with the `instances` table by notices and, after a reconnect, by a refresh."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from api.routing.lane import Lane, Route
from api.routing.notices import InstanceNotice
from firstlight.domain.lifecycle import InstanceState

LIVE = frozenset({InstanceState.STARTING, InstanceState.READY, InstanceState.DRAINING})


class RouteTable:
    """`on_demand` hears of requests that begin to wait, `on_change` of every notice that was applied."""

    def __init__(
        self,
        *,
        max_queue: int,
        on_demand: Callable[[Lane], None] = lambda lane: None,
        on_change: Callable[[InstanceNotice, InstanceState | None], None] = lambda notice, before: None,
    ) -> None:
        self._max_queue = max_queue
        self._lanes: dict[str, Lane] = {}
        # (state, epoch) last seen of every live instance, by id.
        self._known: dict[str, tuple[str, InstanceState, int]] = {}
        self.on_demand = on_demand
        self.on_change = on_change

    @property
    def lanes(self) -> Iterable[Lane]:
        return tuple(self._lanes.values())

    def lane(self, model: str) -> Lane:
        """The lane of a model that exists; opened at its first use."""
        if model not in self._lanes:
            self._lanes[model] = Lane(model, self._max_queue, lambda lane: self.on_demand(lane))
        return self._lanes[model]

    def state_of(self, instance_id: str) -> InstanceState | None:
        known = self._known.get(instance_id)
        return None if known is None else known[1]

    def live_instances(self, model: str) -> int:
        """Starting, ready or draining: what counts against the model's maximum."""
        return sum(known_model == model for known_model, _, _ in self._known.values())

    def apply(self, notice: InstanceNotice) -> None:
        """Take one notice in. One of an older epoch than is known is out of date and ignored."""
        known = self._known.get(notice.instance_id)
        if known is not None and notice.epoch < known[2]:
            return
        before = None if known is None else known[1]
        if notice.state is InstanceState.STARTING and known == (notice.model, notice.state, notice.epoch):
            # A repeat; its engine may serve already, ahead of the database.
            return
        if notice.state in LIVE:
            self._known[notice.instance_id] = (notice.model, notice.state, notice.epoch)
        else:
            self._known.pop(notice.instance_id, None)
        self._move(notice)
        self.on_change(notice, before)

    def open_ahead(self, route: Route) -> None:
        """The engine of a start begun here is bound: who waits goes there before its route is published.

        The database's word counts: nothing is opened once it has said another one.
        """
        if self._known.get(route.instance_id) == (route.model, InstanceState.STARTING, route.epoch):
            self.lane(route.model).open(route)

    def refresh(self, notices: Iterable[InstanceNotice]) -> None:
        """Replace all that is known by what the database holds now (live instances only)."""
        rows = {notice.instance_id: notice for notice in notices}
        for instance_id, (model, state, epoch) in list(self._known.items()):
            if instance_id not in rows:
                gone = InstanceNotice(instance_id, model, "", InstanceState.STOPPED, None, epoch, 1)
                self._known[instance_id] = (model, state, epoch)
                self.apply(gone)
        for notice in rows.values():
            self.apply(notice)

    def _move(self, notice: InstanceNotice) -> None:
        lane = self.lane(notice.model)
        lane.draining.discard(notice.instance_id)
        if notice.state is InstanceState.READY and notice.endpoint is not None:
            lane.open(
                Route(
                    instance_id=notice.instance_id,
                    model=notice.model,
                    host_id=notice.host_id,
                    endpoint=notice.endpoint,
                    epoch=notice.epoch,
                    max_concurrency=max(1, notice.max_concurrency),
                )
            )
            return
        lane.close(notice.instance_id)
        if notice.state is InstanceState.STARTING:
            lane.starting[notice.instance_id] = max(1, notice.max_concurrency)
        elif notice.state is InstanceState.DRAINING:
            lane.draining.add(notice.instance_id)
