"""What a comparison comes to: intervals, tables, files, a page, and figures held against their bounds."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from simulator_scenes import scene

from firstlight.domain.errors import InvalidInput
from simulator.comparing import Comparison, compare
from simulator.evaluate import main as evaluate
from simulator.evaluate import report_of
from simulator.html_report import page
from simulator.scenario import with_trace
from simulator.statistics import interval
from simulator.summary import LATENCIES, Summary
from simulator.tables import table_of, write_rows

POLICIES = ("firstlight", "serverlessllm", "shepherd", "random")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    small = scene(duration_s=20.0, fleet__hosts=2)
    return compare([small], POLICIES, [3, 4, 5], processes=1)


def test_an_interval_is_students() -> None:
    # 1, 2, 3: mean 2, deviation 1, t = 4.303 at two degrees of freedom.
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.303 / 3**0.5)
    assert interval([7.0]).half == 0.0


def test_runs_in_other_processes_give_the_same(comparison: Comparison) -> None:
    again = compare(comparison.scenarios, POLICIES[:2], [3, 4, 5], processes=2)
    for key, summary in again.summaries.items():
        assert summary == comparison.summaries[key]


def test_a_trace_that_is_not_there_is_said_before_anything_is_played(tmp_path: Path) -> None:
    traced = with_trace(scene(name="traced", arrivals={"kind": "trace"}), tmp_path / "nowhere.csv")
    played = []
    with pytest.raises(InvalidInput, match=r"nowhere\.csv: No such file"):
        compare([scene(), traced], ["random"], [0], processes=1, on_done=lambda: played.append(1))
    with pytest.raises(InvalidInput, match="there is no policy 'shepard'"):
        compare([scene()], ["random", "shepard"], [0], processes=1, on_done=lambda: played.append(1))
    assert not played


def test_a_row_per_run_as_csv_and_as_parquet(comparison: Comparison, tmp_path: Path) -> None:
    from pyarrow import parquet

    write_rows(tmp_path / "runs.csv", comparison.summaries)
    write_rows(tmp_path / "runs.parquet", comparison.summaries)
    with (tmp_path / "runs.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    table = parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    assert len(rows) == len(table) == 12
    for row, typed in zip(rows, table, strict=True):
        assert row["policy"] == typed["policy"]
        assert float(row["startup_p99_s"]) == typed["startup_p99_s"]
    with pytest.raises(InvalidInput, match="must end with"):
        write_rows(tmp_path / "runs.xlsx", comparison.summaries)


@pytest.mark.parametrize(
    ("option", "file", "says"),
    [
        ("--csv", "runs.xlsx", "must end with .csv or .parquet"),
        ("--json", "report.txt", "must end with .json"),
        ("--html", "page.json", "must end with .html or .htm"),
        ("--csv", "nowhere/runs.csv", "there is no folder"),
        ("--json", "nowhere/report.json", "there is no folder"),
        ("--html", "folder.html", "is a folder"),
    ],
)
def test_where_results_cannot_go_is_said_before_anything_is_played(
    option: str,
    file: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder.html").mkdir()
    # Were a scenario looked for first, there would be none of this name.
    arguments = ["evaluate", "--only", "none", option, str(tmp_path / file)]
    monkeypatch.setattr("sys.argv", arguments)
    assert evaluate() == 2
    assert says in capsys.readouterr().err


def test_the_table_names_every_policy(comparison: Comparison) -> None:
    console = Console(width=200, record=True, file=StringIO())
    console.print(table_of("A scene", comparison.summaries, "scene"))
    text = console.export_text()
    assert all(policy in text for policy in POLICIES)
    assert "TTFT p99" in text and "TTFT p50" not in text
    whole = table_of("A scene", comparison.summaries, "scene", whole_ttft=True)
    assert [column.header for column in whole.columns][4:7] == ["TTFT p50 s", "TTFT p95 s", "TTFT p99 s"]


class _Page(HTMLParser):
    """Counts, and sees that every element is closed where it was opened."""

    void = frozenset({"meta", "line", "rect", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(comparison: Comparison) -> None:
    parser = _Page()
    parser.feed(page(comparison.scenarios, comparison.summaries, comparison.outcomes))
    assert parser.open == []
    assert parser.links == []
    assert parser.seen.count("svg") == 6
    assert parser.seen.count("path") == 4 * len(POLICIES)


def _summaries(ours: dict[str, float], **others: float) -> Comparison:
    base = dict.fromkeys(LATENCIES, 3.0) | {"preempted_tokens": 100.0, "inside_share": 0.9}
    rows = {
        "firstlight": base | dict.fromkeys(LATENCIES, 1.5) | {"preempted_tokens": 0.0} | ours,
        "serverlessllm": base | others,
        "shepherd": base,
    }
    summaries = {("scene", policy): Summary("scene", policy, (row,)) for policy, row in rows.items()}
    return Comparison((scene(),), summaries, {})


@pytest.mark.parametrize(
    ("ours", "broken"),
    [
        ({}, []),
        ({"ttft_p95_s": 3.01}, ["scene: worst of six"]),
        ({"startup_p99_s": 2.5}, ["start-up latency p99"]),
        ({"preempted_tokens": 101.0}, ["tokens computed again"]),
        ({"inside_share": 0.89}, ["share inside the time-out"]),
    ],
)
def test_a_figure_that_is_missed_is_said(ours: dict[str, float], broken: list[str]) -> None:
    report = report_of(_summaries(ours))
    missed = [figure.name for figure in report.reach if not figure.holds]
    assert len(missed) == len(broken)
    assert all(name.startswith(start) for name, start in zip(missed, broken, strict=True))
    assert report.has_failed == bool(broken)
