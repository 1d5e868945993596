"""Figures for Prometheus. vLLM's names where vLLM has the figure, so that its autoscalers work here too."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api.routing.route_table import RouteTable

_LABELS = ("model_name",)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
_START_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_ERROR_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
_RATIO_BUCKETS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 10.0)


class Metrics:
    """One registry per application, so that two in one process do not share figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token_s = self._histogram(
            "vllm:time_to_first_token_seconds", "Request to first token.", _LABELS, _START_BUCKETS
        )
        self.inter_token_s = self._histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a stream.", _LABELS, _TOKEN_BUCKETS
        )
        self.request_s = self._histogram(
            "vllm:e2e_request_latency_seconds", "Request to end of answer.", _LABELS, _START_BUCKETS
        )
        self.queue_s = self._histogram(
            "firstlight_queue_seconds", "Waited for a place or a start.", _LABELS, _START_BUCKETS
        )
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
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens taken.", _LABELS)
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.", _LABELS)
        self.resumes = self._counter("firstlight_resumes", "Streams that went on elsewhere.", _LABELS)
        self.decisions = self._counter("firstlight_decisions", "What the scheduler said.", ("decision",))
        self.answers = self._counter("firstlight_answers", "HTTP answers.", ("route", "status"))
        self.start_failures = self._counter("firstlight_start_failures", "Starts that failed.", ("code",))

    def watch(self, table: RouteTable) -> None:
        """Read queue and load from the route table at every scrape: costs the warm path nothing."""
        self.registry.register(_LaneCollector(table))

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


class _LaneCollector(Collector):
    def __init__(self, table: RouteTable) -> None:
        self._table = table

    def collect(self) -> Iterator[GaugeMetricFamily]:
        lanes = list(self._table.lanes)
        for name, text, value in (
            ("vllm:num_requests_running", "Requests at an engine.", lambda lane: lane.running),
            ("vllm:num_requests_waiting", "Requests in the queue.", lambda lane: lane.waiting),
            ("firstlight_instances_ready", "Instances taking requests.", lambda lane: len(lane.routes)),
            ("firstlight_instances_starting", "Starts under way.", lambda lane: len(lane.starting)),
        ):
            family = GaugeMetricFamily(name, text, labels=_LABELS)
            for lane in lanes:
                family.add_metric([lane.model], value(lane))
            yield family
