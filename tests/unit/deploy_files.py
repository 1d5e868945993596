"""What lies under deploy/, read as the tools it is for read it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import SecretStr

from firstlight.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "firstlight"
# Where docs/operators/install.md puts docs/ on a machine.
INSTALLED_DOCS = "/opt/firstlight/share/doc/firstlight"
VARIABLES = {f"FIRSTLIGHT_{name.upper()}" for name in Settings.model_fields}
# A database's URL holds its password.
SECRET_VARIABLES = {
    f"FIRSTLIGHT_{name.upper()}"
    for name, field in Settings.model_fields.items()
    if field.annotation == SecretStr | None
} | {"FIRSTLIGHT_DATABASE_URL"}

# In a process of its own: the library brings a Go runtime along, which takes over the process's signals.
_HELM = """
import json, sys
import helm_python as helm
chart_path, all_values = sys.argv[1], json.load(sys.stdin)
answers = []
with helm.Chart.load(chart_path) as chart:
    for values in all_values:
        try:
            chart.validate_schema(values)
            answers.append({"manifests": chart.render(values, name="demo", namespace="prod")})
        except helm.HelmError as error:
            answers.append({"refused": str(error)})
json.dump({"lint": helm.lint(chart_path), "answers": answers}, sys.stdout)
"""


# Any: JSON of charts, values and manifests.
def helm(all_values: list[Mapping[str, Any]], *, chart: Path = CHART) -> dict[str, Any]:
    """What Helm says of the chart, and of each set of values: its manifests, or why it refuses them."""
    done = subprocess.run(
        [sys.executable, "-c", _HELM, str(chart)],
        input=json.dumps(all_values),
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


# Any: Kubernetes objects.
def objects(manifests: Mapping[str, str]) -> list[dict[str, Any]]:
    texts = [text for name, text in manifests.items() if name.endswith(".yaml")]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def pods(rendered: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod template of every workload."""
    for one in rendered:
        if template := one["spec"].get("template"):
            yield one["metadata"]["name"], template


def variables(container: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in container.get("env", [])}
