"""`firstlight simulate`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from firstlight.cli.main import app
from firstlight.domain.errors import InvalidInput


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_without_a_scenario_it_lists_those_that_come_along() -> None:
    output = invoke()
    assert "gsm8k-rps-0.8" in output and "azure-code" in output


def test_a_program_reads_which_scenarios_come_along() -> None:
    listed = json.loads(invoke("--json"))
    assert "gsm8k-rps-0.8" in [one["name"] for one in listed]
    assert all(one["title"] for one in listed)


def test_a_scenario_becomes_a_table_a_page_and_rows(tmp_path: Path) -> None:
    html, rows = tmp_path / "page.html", tmp_path / "runs.csv"
    output = invoke(
        "gsm8k-rps-0.2", "-p", "random", "-p", "clockwork", "--seeds", "2", "--processes", "1",
        "--html", str(html), "-o", str(rows), "--json",
    )  # fmt: skip
    found = json.loads(output[output.index("[") :])
    assert [(one["policy"], one["seeds"]) for one in found] == [("random", 2), ("clockwork", 2)]
    assert found[0]["figures"]["requests"]["mean"] == pytest.approx(128, abs=32)
    assert html.read_text().startswith("<!doctype html>")
    assert len(rows.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "there is no scenario 'nothing'"),
        (["gsm8k-rps-0.2", "-p", "best"], "there is no policy 'best'"),
        (["gsm8k-rps-0.2", "-o", "runs.txt"], "must end with .csv or .parquet"),
        (["gsm8k-rps-0.2", "-o", "nowhere/runs.csv"], "there is no folder nowhere"),
        (["gsm8k-rps-0.2", "--html", "page.pdf"], "must end with .html or .htm"),
        (["gsm8k-rps-0.2", "gsm8k"], "two of the scenarios have one name"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: list[str], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        CliRunner().invoke(app, ["simulate", *arguments, "--processes", "1"], catch_exceptions=False)
    assert says in caught.value.message
