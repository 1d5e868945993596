"""A whole platform watched as an operator would: a trace a request, figures of every role, JSON log lines."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.platform import Platform
from tests.integration.otlp_collector import Collector, SeenSpan, collecting
from tests.platform_fixtures import running_platform, tiny_source

MODEL = "watched"
COLD, WARM = f"{0xC01D:032x}", f"{0xBEEF:032x}"
CALLER = f"{0xCA11:016x}"
PROMPT = "a sentence that belongs to nobody but its client"
KEY = "fl-a-key-that-must-not-be-written-anywhere"
HIDDEN_SECRET = "a-secret-among-hosts"


class Watched:
    def __init__(self, platform: Platform, collector: Collector, metrics_port: int) -> None:
        self.platform, self.collector, self.metrics_port = platform, collector, metrics_port

    def ask(self, trace_id: str, request_id: str) -> None:
        body = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "seed": 1}
        headers = {"traceparent": f"00-{trace_id}-{CALLER}-01", "x-request-id": request_id}
        answer = self.platform.http.post(
            f"{self.platform.api_url}/v1/chat/completions", json=body, headers=headers
        )
        assert answer.status_code == 200, answer.text

    def trace(self, trace_id: str, *, names: set[str]) -> list[SeenSpan]:
        """All spans of a trace, once those named have come."""
        self.platform.wait_for(
            lambda: names <= {span.name for span in self.collector.trace(trace_id)},
            what=f"{names} of {trace_id}",
            deadline_s=40,
        )
        return self.collector.trace(trace_id)

    def lines(self) -> list[tuple[str, str]]:
        """(file, line) of every role's log."""
        logs = sorted((self.platform.state_dir / "logs").glob("*.log"))
        return [(path.stem, line) for path in logs for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    port = _free_ports(3)
    with collecting() as (collector, endpoint):
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "FIRSTLIGHT_LOG_FORMAT": "json",
            "FIRSTLIGHT_METRICS_PORT": str(port),
            "FIRSTLIGHT_API_KEYS": KEY,
            "FIRSTLIGHT_PEER_SECRET": HIDDEN_SECRET,
        }
        with running_platform(folder, **env) as platform:
            platform.http.headers["authorization"] = f"Bearer {KEY}"
            source = tiny_source(folder / "model").as_uri()
            platform.post("/admin/v1/models", {"name": MODEL, "source": source, "keep_alive_s": 600})
            found = Watched(platform, collector, port)
            found.ask(COLD, "request-cold")
            found.ask(WARM, "request-warm")
            yield found


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens at."""
    for first in range(20100, 30000, number):
        try:
            for port in range(first, first + number):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def parent_of(span: SeenSpan, spans: list[SeenSpan]) -> SeenSpan | None:
    return next((one for one in spans if one.span_id == span.parent_id), None)


def path_of(span: SeenSpan, spans: list[SeenSpan]) -> list[str]:
    """Names from the root to this span."""
    names = [span.name]
    while (parent := parent_of(span, spans)) is not None:
        span = parent
        names.insert(0, span.name)
    return names


def named(spans: list[SeenSpan], name: str) -> SeenSpan:
    return next(span for span in spans if span.name == name)


def test_a_cold_request_is_one_trace_from_http_to_the_engine(watched: Watched) -> None:
    needed = {
        "POST /v1/chat/completions",
        f"chat {MODEL}",
        "StartWorkflow:ColdStart",
        "RunWorkflow:ColdStart",
        "RunActivity:bring_up",
        "firstlight.v1.Host/Attach",
        "firstlight.v1.Inference/Generate",
        "prefill",
    }
    spans = watched.trace(COLD, names=needed)
    head = ["POST /v1/chat/completions", f"chat {MODEL}"]
    attach = path_of(named(spans, "firstlight.v1.Host/Attach"), spans)
    assert attach[:3] == [*head, "StartWorkflow:ColdStart"]
    assert attach[-2:] == ["RunActivity:bring_up", "firstlight.v1.Host/Attach"]
    # Spans of a workflow have no length, so that nothing lies within them.
    run = path_of(named(spans, "RunWorkflow:ColdStart"), spans)
    assert run == [*head, "StartWorkflow:ColdStart", "RunWorkflow:ColdStart"]
    prefill = path_of(named(spans, "prefill"), spans)
    assert prefill == [*head, "firstlight.v1.Inference/Generate", "prefill"]
    assert {span.service for span in spans} >= {
        "firstlight-api",
        "firstlight-control-worker",
        "firstlight-host-agent",
        "firstlight-gpu-host",
        "firstlight-store",
        "firstlight-engine",
    }
    # The client's own span is what all of it hangs on.
    roots = [span for span in spans if parent_of(span, spans) is None]
    assert [(root.name, root.parent_id) for root in roots] == [("POST /v1/chat/completions", CALLER)]


def test_a_warm_request_has_the_spans_of_its_answer_alone(watched: Watched) -> None:
    spans = watched.trace(
        WARM, names={"POST /v1/chat/completions", f"chat {MODEL}", "firstlight.v1.Inference/Generate"}
    )
    assert not [span for span in spans if "Workflow" in span.name]
    told = named(spans, f"chat {MODEL}").attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == told["gen_ai.response.model"] == MODEL
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.seed"]) == (4, 1)
    assert told["gen_ai.usage.output_tokens"] == 4
    assert told["gen_ai.usage.input_tokens"] > 4
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    assert told["firstlight.request_id"] == "request-warm"
    served = named(spans, "POST /v1/chat/completions").attributes
    assert (served["http.route"], served["http.response.status_code"]) == ("/v1/chat/completions", 200)
    assert named(spans, "firstlight.v1.Inference/Generate").attributes["gen_ai.usage.output_tokens"] == 4


def test_no_span_and_no_line_holds_a_prompt_or_a_secret(watched: Watched) -> None:
    sent = b"".join(watched.collector.raw)
    written = "\n".join(line for _, line in watched.lines())
    assert "request-cold" in written
    for secret in (PROMPT, KEY, HIDDEN_SECRET):
        assert secret.encode() not in sent
        assert secret not in written


def test_every_line_is_json_and_names_what_it_concerns(watched: Watched) -> None:
    lines = [(file, json.loads(line)) for file, line in watched.lines() if line.startswith("{")]
    assert {line["role"] for _, line in lines} >= {
        "api",
        "control-worker",
        "host-agent",
        "host",
        "store",
        "engine",
    }
    for _, line in lines:
        assert {"timestamp", "level", "logger", "message", "role", "process_id"} <= set(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    # The hint went from the API to a store by gRPC, with the request's id and its trace.
    hints = [line for _, line in lines if line["message"].startswith("prepare checkpoint=watched")]
    assert any(line["request_id"] == "request-cold" and line["trace_id"] == COLD for line in hints)
    others = [(file, line) for file, line in watched.lines() if not line.startswith("{")]
    assert [line for _, line in others if not _is_foreign(line)] == []


def _is_foreign(line: str) -> bool:
    """Said by a library in C or Rust, to standard error itself."""
    return re.match(r"[IWE]\d{4} |=== |src/|\x1b|\d{4}-\d\d-\d\dT[\d:.]+Z |$", line) is not None


@pytest.mark.parametrize(
    ("offset", "names"),
    [
        (0, {"firstlight_activity_seconds_count", "firstlight_hosts", "firstlight_database_up"}),
        (1, {"firstlight_store_used_bytes", "firstlight_engines", "firstlight_host_member"}),
        (2, {"firstlight_store_capacity_bytes", "firstlight_engines", "firstlight_build_info"}),
    ],
)
def test_every_role_has_its_figures(watched: Watched, offset: int, names: set[str]) -> None:
    url = f"http://127.0.0.1:{watched.metrics_port + offset}/metrics"
    text = watched.platform.http.get(url).text
    assert {name for name in names if not re.search(rf"^{name}[ {{]", text, re.MULTILINE)} == set()
    refused = watched.platform.http.get(url, headers={"authorization": "Bearer fl-another"})
    assert refused.status_code == 401


def test_the_figures_of_a_cold_and_a_warm_request(watched: Watched) -> None:
    text = watched.platform.http.get(f"{watched.platform.api_url}/metrics").text

    def count(name: str, **labels: Any) -> float:
        wanted = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        found = re.search(rf"^{re.escape(name)}{{{re.escape(wanted)}}} (\S+)$", text, re.MULTILINE)
        assert found is not None, f"{name} {wanted}"
        return float(found[1])

    for name in (
        "vllm:time_to_first_token_seconds_count",
        "vllm:request_time_per_output_token_seconds_count",
        "vllm:request_queue_time_seconds_count",
        "firstlight_queue_seconds_count",
    ):
        assert count(name, model_name=MODEL) == 2
    assert count("vllm:generation_tokens_total", model_name=MODEL) == 8
    assert count("vllm:request_success_total", model_name=MODEL, finished_reason="length") == 2
    assert count("firstlight_dependency_up", dependency="temporal") == 1


def test_a_start_is_counted_by_its_tier_and_by_its_phases(watched: Watched) -> None:
    def counted(name: str) -> float:
        text = watched.platform.http.get(f"{watched.platform.api_url}/metrics").text
        return sum(map(float, re.findall(rf"^{name}_count{{[^}}]*}} (\S+)$", text, re.MULTILINE)))

    watched.platform.wait_for(
        # The start was recorded when its workflow ended, which the client's answer did not wait for.
        lambda: counted("firstlight_cold_start_seconds") == 1,
        what="the start to be counted",
        deadline_s=20.0,
    )
    assert counted("firstlight_cold_start_phase_seconds") >= 2
