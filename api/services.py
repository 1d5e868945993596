"""Everything the application is made of, put together once; routes take what they need from here."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from temporalio.client import Client

from api.admin.deletion import Deletions
from api.admin.deployment import Describe
from api.admission import Admission
from api.arrivals import ArrivalRecorder
from api.auth import KeyRing, check_listener
from api.background import Background
from api.catalog import Catalog
from api.checkpoint_files import StoreFiles
from api.cluster_starter import ClusterStarter
from api.console.producer import Producer
from api.console.readings import look_here, read_fleet
from api.dispatch import Dispatcher
from api.engine_client import EngineClient
from api.feed import Feed
from api.fleet_watch import FleetWatch
from api.foresight import Foresight
from api.health import Health
from api.host_directory import HostDirectory
from api.key_limits import KeyLimits
from api.metrics import Metrics
from api.minimum import MinimumKeeper
from api.openai.signs_of_life import Clock, Patience
from api.progress_book import ProgressBook
from api.routing.lane import Lane, Route
from api.routing.notices import InstanceNotice
from api.routing.route_table import LIVE, RouteTable
from api.scale_in import ScaleIn
from api.start_ledger import StartLedger
from api.starts import StartDirector
from api.text_cache import TextCache
from api.usage import UsageRecorder
from firstlight.database.connection import Database
from firstlight.database.start_planning import rehearse_plan
from firstlight.domain.autoscaling.choice import scaling_policy
from firstlight.domain.errors import FirstlightError
from firstlight.domain.lifecycle import InstanceState
from firstlight.rpc.channels import Channels
from firstlight.rpc.hint_lines import HintLines
from firstlight.settings import Settings

FRESH_WITHIN_S = 30.0
# The first start is as quick as all others only after this; but it need not wait for it for ever.
PREPARED_WITHIN_S = 10.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What comes from outside. `is_eager`: a control worker runs on `temporal` in this process."""

    settings: Settings
    database: Database
    temporal: Client
    describe: Describe
    patience: Patience = field(default_factory=Patience)
    body_limit_bytes: int = 16 << 20
    is_eager: bool = False


class Services:
    """Built without a running loop; `open` starts listening, `close` ends everything it started.

    `dependencies.database` and `.temporal` stay the caller's to close.
    """

    def __init__(self, dependencies: Dependencies) -> None:
        settings, database = dependencies.settings, dependencies.database
        self.settings = settings
        self.database = database
        self.temporal = dependencies.temporal
        self.describe = dependencies.describe
        self.patience = dependencies.patience
        self.body_limit_bytes = dependencies.body_limit_bytes
        self.keys = KeyRing(settings)
        self.key_limits = KeyLimits()
        self.usage = UsageRecorder(database)
        self.metrics = Metrics()
        self.background = Background()
        self.channels = Channels()
        self.engines = EngineClient(self.channels)
        self.hosts = HostDirectory(database)
        self.hints = HintLines(self.channels)
        self.catalog = Catalog(database)
        self.table = RouteTable(
            max_queue=settings.max_queue_per_model, on_demand=self._demand, on_change=self._changed
        )
        self.metrics.watch(self.table, deployed=lambda: {row.name for row in self.catalog.all_records})
        self.texts = TextCache(
            folder=settings.state_dir / "api" / "text",
            source=StoreFiles(hosts=self.hosts, channels=self.channels),
        )
        self.ledger = StartLedger(
            database=database, table=self.table, metrics=self.metrics, background=self.background
        )
        self.foresight = Foresight()
        self.fleet = FleetWatch(
            database=database,
            foresight=self.foresight,
            hosts=self.hosts,
            channels=self.channels,
            hints=self.hints,
        )
        self.starter = ClusterStarter(
            database=database,
            temporal=dependencies.temporal,
            channels=self.channels,
            engines=self.engines,
            hosts=self.hosts,
            hints=self.hints,
            background=self.background,
            foresight=self.foresight,
            max_plans=settings.max_plans,
            is_eager=dependencies.is_eager,
            on_bound=self.table.open_ahead,
        )
        scaling = scaling_policy(
            settings.scaling_policy,
            out_at=settings.scale_out_at,
            out_after_s=settings.scale_out_after_s,
            in_at=settings.scale_in_at,
            in_after_s=settings.scale_in_after_s,
        )
        self.scale_in = ScaleIn(
            table=self.table, scaling=scaling, min_instances_of=self.catalog.min_instances_of
        )
        self.arrivals = ArrivalRecorder(database)
        self.director = StartDirector(
            scaling=scaling,
            starter=self.starter,
            table=self.table,
            max_instances_of=self.catalog.max_instances_of,
            on_planned=self.ledger.planned,
        )
        self.dispatcher = Dispatcher(
            engines=self.engines,
            table=self.table,
            background=self.background,
            on_resume=lambda model: self.metrics.of(model).resumes.inc(),
        )
        self.admission = Admission(catalog=self.catalog, table=self.table, texts=self.texts)
        self.deletions = Deletions(
            database=database,
            temporal=dependencies.temporal,
            catalog=self.catalog,
            background=self.background,
        )
        self.health = Health(database=database, temporal=dependencies.temporal, keys=self.keys)
        self.metrics.watch_peers(
            lambda: {"postgres": self.health.postgres.is_well(), "temporal": self.health.temporal.is_well()}
        )
        self.minimum = MinimumKeeper(catalog=self.catalog, table=self.table, director=self.director)
        self.progress = ProgressBook()
        self.feed = Feed(
            database=database,
            table=self.table,
            catalog=self.catalog,
            director=self.director,
            on_change=self.minimum.changed,
            on_news=self._heard,
            on_progress=self.progress.hear,
        )
        self.console = Producer(read=lambda: read_fleet(self), look=lambda: look_here(self))
        # Nothing is left to be done once in this process.
        self.is_prepared = asyncio.Event()
        self._endpoints: dict[str, str] = {}

    def clock(self) -> Clock:
        """Of a request that arrives now."""
        now_s = time.monotonic()
        return Clock(arrived_s=now_s, deadline_s=now_s + self.settings.start_timeout_s)

    async def open(self) -> None:
        """Raises: InvalidSettings for a listener that is open to others without keys."""
        await self.health.look()
        check_listener(self.settings, self.keys)
        self.background.start(self.health.run(), name="health")
        self.background.start(self.feed.run(), name="listener")
        self.background.start(self.fleet.run(), name="picture of the fleet")
        self.background.start(self._after_first_refresh(), name="preparations")
        self.background.start(self.scale_in.run(), name="scaling in")
        self.background.start(self.arrivals.run(), name="arrivals")
        self.background.start(self.usage.run(), name="usage of keys")
        self.background.start(self.console.run(), name="console")

    def leave(self) -> None:
        """The server stops: end what would go on for ever, so that only answers are waited for."""
        self.console.close()

    async def close(self) -> None:
        await self.director.close()
        await self.background.close()
        await self.arrivals.write()
        await self.usage.write()
        await self.hints.close()
        await self.channels.close()

    async def _after_first_refresh(self) -> None:
        await self.feed.is_fresh.wait()
        await self._prepare()
        self.is_prepared.set()
        await self.deletions.resume()
        await self.minimum.run()

    async def _prepare(self) -> None:
        """What a first request would otherwise wait for; whatever of it hangs holds nothing up for long."""
        try:
            async with asyncio.timeout(PREPARED_WITHIN_S):
                await self.texts.preload(self.catalog.records)
                await self.fleet.has_looked.wait()
                await self.database.warm(rehearse_plan)
                await self.starter.rehearse()
        except (FirstlightError, TimeoutError) as error:
            logger.warning("not all is prepared for the first start: %s", error)

    async def foretell(self, model: str, request_id: str) -> None:
        """A request for `model` has come in: if nothing serves or starts, bytes may begin to move."""
        lane = self.table.lane(model)
        if not lane.routes and not lane.starting:
            self.starter.foretell(model, request_id)
            # The call is made in one turn of the loop and leaves in the next: before this request's own work.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    def _heard(self) -> None:
        self.fleet.changed()
        self.console.changed()

    def _demand(self, lane: Lane) -> None:
        self.director.demand(lane)

    def _changed(self, notice: InstanceNotice, before: InstanceState | None) -> None:
        if notice.state is InstanceState.READY and before is not InstanceState.READY and notice.endpoint:
            # Requests that move there, or start there, find the connection made.
            self.background.start(self.engines.meet((notice.endpoint,)), name="connect to an engine")
        self.director.changed(notice, before)
        self.ledger.changed(notice)
        self.deletions.changed(notice, before)
        self.minimum.changed()
        if notice.state not in LIVE:
            self.foresight.ended(notice.instance_id, notice.host_id)
        if notice.state in LIVE and notice.endpoint is not None:
            self._endpoints[notice.instance_id] = notice.endpoint
        elif notice.state not in LIVE and (endpoint := self._endpoints.pop(notice.instance_id, None)):
            self._close_channel(endpoint)

    def _close_channel(self, endpoint: str) -> None:
        # A new engine may have taken the port already: its channel is the same.
        if endpoint not in self._endpoints.values():
            self.background.start(self.engines.forget(endpoint), name=f"close channel to {endpoint}")

    def routes_of(self, model: str) -> tuple[Route, ...]:
        return self.table.lane(model).routes

    async def until_fresh(self) -> None:
        """Wait until the routes are known, at most `FRESH_WITHIN_S`."""
        async with asyncio.timeout(FRESH_WITHIN_S):
            await self.feed.is_fresh.wait()
