"""Log lines: the ids they carry, both formats, and the secrets they do not."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from firstlight.domain.errors import InvalidSettings
from firstlight.launcher.metrics_listener import check_metrics_listener
from firstlight.settings import read_settings
from firstlight.telemetry import tracing
from firstlight.telemetry.ids import bind, bound
from firstlight.telemetry.log_lines import JsonLines, TextLines
from firstlight.telemetry.redaction import Redaction


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "store", "levelname": "INFO", "msg": message, **extra})
    made.created, made.msecs = 1_700_000_000.0, 7.0
    return made


async def in_a_task(formatter: logging.Formatter, **ids: str) -> str:
    async def work() -> str:
        bind(**ids)
        return await asyncio.create_task(line())

    async def line() -> str:
        return formatter.format(record("loaded"))

    return await asyncio.create_task(work())


async def test_a_line_carries_the_ids_of_its_task_and_of_no_other() -> None:
    formatter = JsonLines({"role": "store", "host_id": ""}, Redaction())
    one, other = await asyncio.gather(
        in_a_task(formatter, request_id="r-1", workflow_id="cold-start/x"),
        in_a_task(formatter, request_id="r-2", workflow_id=""),
    )
    assert json.loads(one) == {
        "timestamp": "2023-11-14T22:13:20.007Z",
        "level": "INFO",
        "logger": "store",
        "message": "loaded",
        "role": "store",
        "request_id": "r-1",
        "workflow_id": "cold-start/x",
        "process_id": json.loads(one)["process_id"],
    }
    assert json.loads(other)["request_id"] == "r-2"
    assert "workflow_id" not in json.loads(other)
    assert bound() == {}


async def test_a_text_line_ends_with_them_unless_it_names_them_already() -> None:
    formatter = TextLines("%(levelname)s %(message)s", None, Redaction())
    assert await in_a_task(formatter, request_id="r-1") == "INFO loaded request_id=r-1"
    assert await in_a_task(formatter, request_id="loaded") == "INFO loaded"


def test_temporals_own_loggers_tell_their_workflow() -> None:
    told = record("mended", temporal_workflow={"workflow_id": "host/a", "run_id": "1", "attempt": 3})
    line = json.loads(JsonLines({}, Redaction()).format(told))
    assert (line["workflow_id"], line["run_id"]) == ("host/a", "1")
    assert "attempt" not in line


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("cannot reach postgresql://me:hush@db/x", "cannot reach postgresql://me:***@db/x"),
        ("sent Authorization: Bearer abc.def-123", "sent Authorization: Bearer ***"),
        ("made fl-0123456789abcdefghijklmnop", "made ***"),
        ("with hf_0123456789abcdefghijklmn", "with ***"),
        ("GET https://s3/x?X-Amz-Signature=0a1b2c&part=1", "GET https://s3/x?X-Amz-Signature=***&part=1"),
        ("the pool is full of tokens", "the pool is full of tokens"),
    ],
)
def test_what_looks_like_a_credential_is_hidden(written: str, left: str) -> None:
    assert Redaction().hide(written) == left
    assert json.loads(JsonLines({}, Redaction()).format(record(written)))["message"] == left


def test_values_of_secret_settings_are_hidden_in_exceptions_too() -> None:
    settings = read_settings(
        api_keys="first-key, second-key",
        peer_secret="among-hosts",
        temporal_api_key="cloud-key",
        database_url="postgresql://me:pass%20word@db/x",
    )
    assert {"first-key", "second-key", "among-hosts", "cloud-key"} <= set(settings.secrets())
    formatter = TextLines("%(message)s", None, Redaction(settings.secrets()))
    try:
        raise ValueError("refused second-key of among-hosts")
    except ValueError as failure:
        text = formatter.format(record("first-key", exc_info=(ValueError, failure, failure.__traceback__)))
    assert "ValueError: refused *** of ***" in text
    assert not [secret for secret in settings.secrets() if secret in text]


def test_without_a_collector_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    tracing.start("api")
    assert not tracing.is_on()
    with tracing.span("anything") as span:
        assert span is None
    assert tracing.carrier() == {}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.is_wanted()


def test_metrics_beyond_loopback_need_a_key_or_a_private_network() -> None:
    open_to_all = read_settings(metrics_port=9464, metrics_host="0.0.0.0")
    with pytest.raises(InvalidSettings, match="open to everyone"):
        check_metrics_listener(open_to_all)
    for closed in ({"rpc_plain": True}, {"metrics_host": "127.0.0.1"}):
        check_metrics_listener(open_to_all.model_copy(update=closed))
    check_metrics_listener(read_settings(metrics_port=9464, metrics_host="0.0.0.0", api_keys="a-key"))
