"""How figures and starts look."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from firstlight.cli.deploy import as_uri
from firstlight.cli.output import bar, seconds, size
from firstlight.cli.timeline import phase_rows, print_timeline, timeline_table

START = {
    "model": "m",
    "host_id": "host-a",
    "state": "ready",
    "predicted": {"queue_s": 0.0, "download_s": 30.0, "load_s": 0.5, "attach_s": 0.1, "control_s": 0.0},
    "actual": {
        "queue_s": 0.0,
        "download_s": 20.0,
        "load_s": 0.4,
        "attach_s": 0.1,
        "control_s": 0.06,
        "total_s": 20.56,
    },
    "first_token_s": 0.3,
}


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (538_000_000, "538 MB"), (2.55e9, "2.5 GB")],
)
def test_sizes_are_decimal_and_short(size_bytes: float | None, text: str) -> None:
    assert size(size_bytes) == text


@pytest.mark.parametrize(
    ("value_s", "text"), [(None, "-"), (0.0421, "42 ms"), (1.234, "1.2 s"), (300.0, "5.0 min")]
)
def test_seconds_are_short(value_s: float | None, text: str) -> None:
    assert seconds(value_s) == text


@pytest.mark.parametrize(("share", "filled"), [(0.0, 0), (0.001, 1), (0.5, 10), (1.0, 20), (1.5, 20)])
def test_a_bar_is_as_full_as_its_share(share: float, filled: int) -> None:
    assert bar(share).count("█") == filled
    assert len(bar(share)) == 20


def test_phases_that_are_nothing_are_left_out_and_the_rest_stand_in_order() -> None:
    assert [row.name for row in phase_rows(START)] == [
        "download",
        "load",
        "attach",
        "workflow",
        "first token",
    ]


def test_a_timeline_shows_predicted_beside_actual() -> None:
    shown = Console(file=io.StringIO(), width=120)
    shown.print(timeline_table(START))
    assert isinstance(shown.file, io.StringIO)
    lines = shown.file.getvalue().splitlines()
    download = next(line for line in lines if "download" in line)
    assert download.split()[:5] == ["download", "30.0", "s", "20.0", "s"]
    ready = next(line for line in lines if "ready" in line)
    assert ready.split() == ["ready", "30.6", "s", "20.6", "s"]


@pytest.mark.parametrize(("ready_at_unix_s", "headline"), [(1.0, "ready"), (None, "failed")])
def test_an_instance_that_ended_later_is_no_failed_start(
    ready_at_unix_s: float | None, headline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_timeline(
        {**START, "state": "failed", "failure": "the engine ended", "ready_at_unix_s": ready_at_unix_s}
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1] == headline
    told = next(line for line in lines if "the engine ended" in line)
    assert ("ended since" in told) == (ready_at_unix_s is not None)


def test_a_start_that_failed_before_any_phase_has_no_rows() -> None:
    assert phase_rows({"predicted": None, "actual": None}) == []


def test_a_path_becomes_a_uri_and_a_uri_stays(tmp_path: Path) -> None:
    assert as_uri(str(tmp_path / "m.gguf")) == f"file://{tmp_path}/m.gguf"
    assert as_uri("hf://a/b") == "hf://a/b"
