"""What the operators' page says of metrics is what is exposed; dashboard and alerts ask for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from api.metrics import Metrics
from api.routing.route_table import RouteTable
from firstlight.domain.names import host_id
from firstlight.launcher.activity_figures import ActivityFigures
from firstlight.launcher.fleet_figures import figures_of
from firstlight.launcher.host_figures import HostFigures
from firstlight.launcher.metrics_server import role_registry
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import HostClient, StoreClient
from firstlight.rpc.engine_loads import EngineLoads
from firstlight.rpc.host_pb2 import EngineProcess, ListEnginesReply
from firstlight.rpc.store_pb2 import InventoryReply

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operators" / "metrics.md"
RULES = ROOT / "deploy" / "alerts" / "firstlight.rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "firstlight.json"
_ROW = re.compile(r"^\| `([a-z0-9_:]+)` \| (histogram|counter|gauge) \| ([^|]*) \|")
# Prometheus's own, and what it adds to each.
FOREIGN = {"up": {"job", "role", "instance"}}
ADDED = {"job", "role", "instance", "le"}

Known = dict[str, tuple[str, frozenset[str]]]


def documented(heading: str) -> Known:
    """Name → type and labels, of one section's table."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = filter(None, map(_ROW.match, section.splitlines()))
    return {row[1]: (row[2], frozenset(re.findall(r"`(\w+)`", row[3]))) for row in rows}


def exposed(metrics: Iterable[Metric]) -> Known:
    found: Known = {}
    for metric in metrics:
        if metric.name.startswith("process_"):
            continue
        name = metric.name + ("_total" if metric.type == "counter" else "")
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        found[name] = (metric.type, frozenset(labels))
    return found


class OneCatalog:
    def __init__(self) -> None:
        self.deployed = {"qwen"}


def api_metrics() -> tuple[Metrics, OneCatalog]:
    """Every family with a sample."""
    metrics, catalog = Metrics(), OneCatalog()
    table = RouteTable(max_queue=1)
    table.lane("qwen")
    metrics.watch(table, deployed=lambda: catalog.deployed)
    metrics.watch_peers(lambda: {"postgres": True, "temporal": False})
    metrics.of("qwen")
    metrics.finished("qwen", "stop")
    for family in (metrics.start_s, metrics.estimate_error_s, metrics.estimate_error_ratio):
        family.labels("dram")
    metrics.start_phase_s.labels("load")
    metrics.decisions.labels("place")
    metrics.answers.labels("/v1/models", "200")
    metrics.start_failures.labels("start_failed")
    return metrics, catalog


def worker_registry() -> CollectorRegistry:
    registry = role_registry()
    ActivityFigures(registry).took_s.labels("bring_up", "ok")
    return registry


async def host_metrics() -> list[Metric]:
    async with Channels() as channels:
        figures = HostFigures(
            host_id=host_id("host-a"),
            store=StoreClient(channels, "127.0.0.1:9"),
            host=HostClient(channels, "127.0.0.1:9"),
            loads=EngineLoads(channels),
        )
        # Told by nobody here: a store that is away says nothing of its tiers.
        engines = ListEnginesReply(engines=[EngineProcess(state="ready", instance_id="i", model="qwen")])
        asked = await figures.gather()
        return [*asked, *figures.of_store(InventoryReply()), *await figures.of_engines(engines)]


def all_exposed() -> dict[str, Known]:
    return {
        "The API's": exposed(api_metrics()[0].registry.collect()),
        "A control worker's": exposed([*worker_registry().collect(), *figures_of([], [])]),
        "A GPU host's": exposed([*worker_registry().collect(), *asyncio.run(host_metrics())]),
    }


@pytest.fixture(scope="module")
def known() -> dict[str, Known]:
    return all_exposed()


@pytest.mark.parametrize("heading", ["The API's", "A control worker's", "A GPU host's"])
def test_metrics_documented_are_those_exposed(known: dict[str, Known], heading: str) -> None:
    assert documented(heading) == known[heading]


def test_a_model_that_is_deployed_no_more_has_no_figures() -> None:
    metrics, catalog = api_metrics()
    assert 'model_name="qwen"' in metrics.exposition().decode()
    catalog.deployed = set()
    assert 'model_name="qwen"' not in metrics.exposition().decode()
    # A stream of it that still ends brings nothing back.
    metrics.finished("qwen", "stop")
    assert 'model_name="qwen"' not in metrics.exposition().decode()


# --- what asks for them ---


def samples(known: dict[str, Known]) -> dict[str, frozenset[str]]:
    """Name of a series → its labels."""
    found: dict[str, frozenset[str]] = {name: frozenset(labels) for name, labels in FOREIGN.items()}
    for family, (kind, labels) in (row for one in known.values() for row in one.items()):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[family + suffix] = labels | found.get(family + suffix, frozenset())
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total"):
        found[name] = frozenset()
    return found


# Any: the parser's own node types, of which it has a dozen.
def nodes(expression: Any) -> Iterator[Any]:
    yield expression
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "param"):
        child = getattr(expression, name, None)
        if isinstance(child, list):
            for one in child:
                yield from nodes(one)
        elif child is not None and not isinstance(child, str | float | int):
            yield from nodes(child)


def wrong_with(query: str, series: dict[str, frozenset[str]]) -> list[str]:
    wrong, found = [], 0
    for node in nodes(promql_parser.parse(query)):
        if not isinstance(node, promql_parser.VectorSelector):
            continue
        found += 1
        if node.name not in series:
            wrong.append(f"{node.name} is not exposed")
            continue
        labels = {matcher.name for matcher in node.matchers.matchers}
        wrong += [f"{node.name} has no label {label}" for label in labels - series[node.name] - ADDED]
    return wrong if found else ["it asks for nothing"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_asks_for_what_is_exposed(rule: dict[str, Any], known: dict[str, Known]) -> None:
    assert wrong_with(rule["expr"], samples(known)) == []
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_a_panel_asks_for_what_is_exposed(panel: dict[str, Any], known: dict[str, Known]) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "5m")
        assert wrong_with(query, samples(known)) == []
        grouped = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert grouped <= set(re.findall(r"\w+", query)) | samples_labels(query, known) | ADDED


def samples_labels(query: str, known: dict[str, Known]) -> set[str]:
    series = samples(known)
    selectors = [node for node in nodes(promql_parser.parse(query)) if hasattr(node, "matchers")]
    return {label for selector in selectors for label in series[selector.name]}


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["title"] and board["uid"] and board["schemaVersion"] >= 36
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < 24 and at["x"] + at["w"] <= 24
    taken = [
        (column, row)
        for panel in board["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for row in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken), "panels lie over each other"
    variables = {one["name"] for one in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == variables


@pytest.mark.parametrize(
    "query", ["firstlight_no_such_figure", 'firstlight_hosts{colour="red"}', "vector(1)"]
)
def test_a_query_that_asks_for_nothing_we_have_is_found(query: str, known: dict[str, Known]) -> None:
    assert wrong_with(query, samples(known))
