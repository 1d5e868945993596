"""Workflow code can reach no clock, no chance, no I/O: it imports nothing that has them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import workflows

FILES = sorted(Path(workflows.__file__).parent.glob("*.py"))
ALLOWED = {
    "__future__": None,
    "asyncio": {
        "CancelledError",
        "shield",
        "gather",
        "create_task",
        "Task",
        "FIRST_COMPLETED",
        "FIRST_EXCEPTION",
    },
    "collections.abc": None,
    "contextlib": None,
    "dataclasses": None,
    "datetime": {"timedelta"},
    "typing": None,
    "temporalio": None,
    "firstlight.contracts": None,
    "firstlight.domain": None,
    "workflows": None,
}


def allowed(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_only_what_is_deterministic(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert allowed(name.name), f"{path.name} imports {name.name}"
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None and allowed(node.module), f"{path.name} imports {node.module}"
            names = ALLOWED.get(node.module)
            taken = {alias.name for alias in node.names}
            # The contracts' own starter talks to a server: only its constants are for workflows.
            if node.module == "firstlight.contracts.starting":
                names = {"TASK_TIMEOUT", "DOWNLOADING", "LOADING", "first_phase", "is_fetched"}
            assert names is None or taken <= names, f"{path.name} imports {taken} from {node.module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_asyncio_is_used_only_where_temporal_makes_it_deterministic(path: Path) -> None:
    names = ALLOWED["asyncio"]
    assert names is not None
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "asyncio"
        ):
            assert node.attr in names, f"{path.name} uses asyncio.{node.attr}"


def test_there_are_workflows_to_check() -> None:
    assert {"cold_start", "host_lifecycle", "fleet_reconciler"} <= {path.stem for path in FILES}
