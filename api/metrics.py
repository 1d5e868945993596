"""Figures for Prometheus. vLLM's names where vLLM has the figure, so that its autoscalers work here.

docs/operators/metrics.md says what each is. No label takes values that clients choose: models are
deployed ones, and routes, codes and tiers are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.model_figures import ModelFamilies, ModelFigures
from api.routing.route_table import RouteTable

_START_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ERROR_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_RATIO_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 10.0)


class Metrics:
    """One registry per application, so that two in one process do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._build = Gauge("firstlight_build_info", "Always 1.", ("version",), registry=self.registry)
        self._build.labels(version("firstlight")).set(1)
        self._models = ModelFamilies(self.registry)
        self._deployed: Callable[[], Collection[str]] | None = None
        self.start_s = self._histogram(
            "firstlight_cold_start_seconds", "Starts by the tier they began in.", ("tier",), _START_BUCKETS
        )
        self.start_phase_s = self._histogram(
            "firstlight_cold_start_phase_seconds", "One phase of a start.", ("phase",), _START_BUCKETS
        )
        self.estimate_error_s = self._histogram(
            "firstlight_estimate_error_seconds",
            "Absolute difference of predicted and actual start.",
            ("tier",),
            _ERROR_BUCKETS,
        )
        self.estimate_error_ratio = self._histogram(
            "firstlight_estimate_error_ratio",
            "The same difference, of what the start took.",
            ("tier",),
            _RATIO_BUCKETS,
        )
        self.decisions = self._counter("firstlight_decisions", "What the scheduler said.", ("decision",))
        self.answers = self._counter("firstlight_answers", "HTTP answers.", ("route", "status"))
        self.start_failures = self._counter("firstlight_start_failures", "Starts that failed.", ("code",))

    def of(self, model: str) -> ModelFigures:
        """Figures of a deployed model."""
        return self._models.of(model)

    def finished(self, model: str, reason: str) -> None:
        """One choice came to its end."""
        self._models.finished(model, reason)

    def watch(self, table: RouteTable, *, deployed: Callable[[], Collection[str]]) -> None:
        """Read queue and load from the route table at every scrape: costs the warm path nothing.

        Figures of models that are not `deployed` (any more) are left out.
        """
        self._deployed = deployed
        self.registry.register(_LaneCollector(table, deployed))

    def watch_peers(self, is_well: Callable[[], dict[str, bool]]) -> None:
        """Whether Postgres and Temporal answer, as far as this process knows."""
        self.registry.register(_PeerCollector(is_well))

    def exposition(self) -> bytes:
        if self._deployed is not None:
            self._models.keep(self._deployed())
        return generate_latest(self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class _LaneCollector(Collector):
    def __init__(self, table: RouteTable, deployed: Callable[[], Collection[str]]) -> None:
        self._table = table
        self._deployed = deployed

    def collect(self) -> Iterator[GaugeMetricFamily]:
        deployed = set(self._deployed())
        lanes = [lane for lane in self._table.lanes if lane.model in deployed]
        for name, text, value in (
            ("vllm:num_requests_running", "Requests at an engine.", lambda lane: lane.running),
            ("vllm:num_requests_waiting", "Requests in the queue.", lambda lane: lane.waiting),
            ("firstlight_instances_ready", "Instances taking requests.", lambda lane: len(lane.routes)),
            ("firstlight_instances_starting", "Starts under way.", lambda lane: len(lane.starting)),
        ):
            family = GaugeMetricFamily(name, text, labels=("model_name",))
            for lane in lanes:
                family.add_metric([lane.model], value(lane))
            yield family


class _PeerCollector(Collector):
    def __init__(self, is_well: Callable[[], dict[str, bool]]) -> None:
        self._is_well = is_well

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "firstlight_dependency_up",
            "Whether Postgres and Temporal answer the API.",
            labels=("dependency",),
        )
        for name, is_well in self._is_well().items():
            family.add_metric([name], float(is_well))
        yield family
