"""An alert's runbook can be opened: in the docs of an installation, or wherever they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from docs_pages import anchors

from tests.unit.deploy_files import DEPLOY, INSTALLED_DOCS, ROOT, helm

PUBLISHED = "https://docs.example/firstlight/operators/runbooks.html"
RULES = yaml.safe_load((DEPLOY / "alerts" / "firstlight.rules.yaml").read_text())
URLS = [rule["annotations"]["runbook_url"] for group in RULES["groups"] for rule in group["rules"]]


def urls_with(tmp_path: Path, labels: dict[str, str]) -> list[str]:
    """As Prometheus tells them: both it and Helm fill in templates of Go's `text/template`."""
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: alerts, version: 0.0.0}")
    # What Prometheus puts before the text of every annotation.
    template = "{{ $externalLabels := .Values.externalLabels }}" + "\n".join(URLS)
    (tmp_path / "templates" / "urls.yaml").write_text(template)
    [answer] = helm([{"externalLabels": labels}], chart=tmp_path)["answers"]
    [text] = answer["manifests"].values()
    return str(text).split()


@pytest.fixture(autouse=True)
def _helm() -> None:
    pytest.importorskip("helm_python")


def test_runbooks_are_pages_that_an_installation_has(tmp_path: Path) -> None:
    told = urls_with(tmp_path, {})
    assert len(told) == len(URLS) > 10
    for url in told:
        page, _, anchor = url.partition("#")
        assert page.startswith(f"file://{INSTALLED_DOCS}/")
        assert anchor in anchors(ROOT / "docs" / page.removeprefix(f"file://{INSTALLED_DOCS}/"))


def test_runbooks_are_where_an_operator_says_they_are_published(tmp_path: Path) -> None:
    # As the operators' page has it in prometheus.yml.
    page = (ROOT / "docs" / "operators" / "metrics.md").read_text()
    assert f'external_labels: {{firstlight_runbooks: "{PUBLISHED}"}}' in page
    told = urls_with(tmp_path, {"firstlight_runbooks": PUBLISHED})
    assert {url.partition("#")[0] for url in told} == {PUBLISHED}
    assert all(url.partition("#")[2] for url in told)
