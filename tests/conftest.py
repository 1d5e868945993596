"""For every test: why one failed that passed when it was run once more (`--reruns`) is told at the end."""

from __future__ import annotations

import os

import pytest

# Before any test module loads gRPC; see firstlight/__init__.py.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports: list[pytest.TestReport] = terminalreporter.stats.get("rerun", [])
    if reports:
        terminalreporter.section("first failures of tests that were run again")
    for report in reports:
        terminalreporter.write_sep("_", report.nodeid)
        terminalreporter.write_line(report.longreprtext[-4000:])
