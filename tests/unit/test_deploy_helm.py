"""The Helm chart, rendered by Helm itself, against Kubernetes' own schemas and our own laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from api.auth import KeyRing, check_listener
from firstlight.launcher.gpu_host import check_gpu_host
from firstlight.launcher.health import CHECKS
from firstlight.launcher.metrics_listener import check_metrics_listener
from firstlight.rpc import identity
from firstlight.settings import Settings, read_settings
from tests.unit.deploy_files import SECRET_VARIABLES, VARIABLES, helm, objects, pods, variables

pytest.importorskip("helm_python")
kubernetes = pytest.importorskip("kubernetes_validate")

# The oldest release the chart admits, and one of today.
RELEASES = ("1.27", "1.34")
VALUES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "everything on": {
        "image": {"registry": "registry.example/firstlight", "tag": "1.2.3", "pullSecrets": ["pull"]},
        "temporal": {
            "address": "cloud:7233",
            "namespace": "prod",
            "tls": True,
            "tlsSecretName": "temporal-tls",
            "apiKeySecretName": "temporal-key",
            "uiUrl": "https://temporal.example",
        },
        "rpc": {"tlsSecretName": "fleet-tls"},
        "settings": {"FIRSTLIGHT_DEFAULT_KEEP_ALIVE_S": "600"},
        "api": {"tlsSecretName": "api-tls", "digest": "sha256:" + "a" * 64},
        "controlWorker": {"versioning": {"enabled": True, "keep": [{"buildId": "1.2.2", "tag": "1.2.2"}]}},
        "gpuHost": {"hugepages2Mi": "64Gi", "runtimeClassName": "nvidia"},
        "metrics": {"port": 9464},
        "networkPolicy": {"apiFrom": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
    },
    "no GPUs": {
        "gpuHost": {"image": "gpu-host-cpu", "gpuResource": "", "storage": {"hostPath": "/mnt/nvme"}},
        "networkPolicy": {"enabled": False},
        "upgradeDatabase": {"enabled": False},
        "metrics": {"port": 9464},
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "latest": {"image": {"tag": "latest"}},
    "misspelt": {"api": {"replica": 3}},
    "sekret": {"database": {"url": "postgresql://me:password@db/x"}},
    "figures for everyone": {
        "rpc": {"tlsSecretName": "fleet-tls"},
        "api": {"keysSecretName": ""},
        "metrics": {"port": 9464},
    },
    "number": {"settings": {"FIRSTLIGHT_DEFAULT_KEEP_ALIVE_S": 600}},
}
# What each role looks at before it listens anywhere.
LISTENERS: dict[str, Callable[[Settings], object]] = {
    "api": lambda settings: check_listener(settings, KeyRing(settings)),
    "control-worker": check_metrics_listener,
    "gpu-host": check_gpu_host,
}


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    found = helm([*VALUES.values(), *REFUSED.values()])
    assert [one for one in found["lint"]["messages"] if one["severity"] > 1] == []
    assert found["lint"]["errors"] == []
    return dict(zip([*VALUES, *REFUSED], found["answers"], strict=True))


@pytest.fixture(scope="module", params=VALUES)
def rendered(request: pytest.FixtureRequest, answers: dict[str, Any]) -> list[dict[str, Any]]:
    answer = answers[request.param]
    assert "manifests" in answer, answer
    return objects(answer["manifests"])


@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_takes_every_manifest(rendered: list[dict[str, Any]], release: str) -> None:
    for one in rendered:
        kubernetes.validate(one, release, strict=True)


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_mean_nothing_are_refused(answers: dict[str, Any], name: str) -> None:
    assert "refused" in answers[name]


def test_no_secret_is_in_a_manifest_and_no_variable_misspelt(rendered: list[dict[str, Any]]) -> None:
    for name, pod in pods(rendered):
        for container in pod["spec"]["containers"]:
            told = variables(container)
            assert told.keys() <= VARIABLES, name
            assert all("secretKeyRef" in told[one]["valueFrom"] for one in told.keys() & SECRET_VARIABLES)
            assert "FIRSTLIGHT_DATABASE_URL" in told and "FIRSTLIGHT_TEMPORAL_ADDRESS" in told


@pytest.fixture
def nobody_afterwards() -> Iterator[None]:
    yield
    identity.assume(None)


@pytest.mark.usefixtures("nobody_afterwards")
def test_every_role_starts_with_what_its_pod_is_given(
    rendered: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in identity.FILES:
        (tmp_path / name).write_text("PEM")
    checked = set()
    for _, pod in pods(rendered):
        role = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        if role not in LISTENERS:
            continue
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        if role == "api":
            # By its image.
            monkeypatch.setenv("FIRSTLIGHT_API_HOST", "0.0.0.0")
        [container] = pod["spec"]["containers"]
        for name, told in variables(container).items():
            mounted = name == "FIRSTLIGHT_RPC_TLS_DIR"
            monkeypatch.setenv(name, str(tmp_path) if mounted else in_the_pod(told))
        LISTENERS[role](read_settings())
        checked.add(role)
    assert checked == LISTENERS.keys()


def in_the_pod(told: Mapping[str, Any]) -> str:
    """What the kubelet makes of one variable."""
    given = told.get("valueFrom", {})
    if "secretKeyRef" in given:
        is_database = told["name"] == "FIRSTLIGHT_DATABASE_URL"
        return "postgresql://me:password@database/firstlight" if is_database else "from-a-secret"
    if "fieldRef" in given:
        return {"metadata.name": "demo-gpu-host-0", "status.podIP": "10.1.2.3"}[
            given["fieldRef"]["fieldPath"]
        ]
    return str(told["value"])


def test_every_pod_is_locked_down(rendered: list[dict[str, Any]]) -> None:
    for name, pod in pods(rendered):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert not container["image"].endswith(":latest") and len(container["image"].split(":")) == 2


def test_a_pod_has_the_time_that_its_role_takes_to_leave(rendered: list[dict[str, Any]]) -> None:
    for name, pod in pods(rendered):
        [container] = pod["spec"]["containers"]
        told, grace_s = variables(container), pod["spec"].get("terminationGracePeriodSeconds", 30)
        if name.endswith("gpu-host"):
            assert grace_s >= int(told["FIRSTLIGHT_DRAIN_ON_STOP_S"]["value"]) + 20
        if name.endswith("-api"):
            leaving_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
            assert leaving_s > 0
            assert grace_s >= leaving_s + int(told["FIRSTLIGHT_API_DRAIN_S"]["value"]) + 10


def test_selectors_find_their_pods_and_probes_their_roles(rendered: list[dict[str, Any]]) -> None:
    labels = [pod["metadata"]["labels"] for _, pod in pods(rendered)]
    for one in rendered:
        selector = one["spec"].get("selector") or one["spec"].get("podSelector") or {}
        wanted = selector.get("matchLabels", selector)
        if one["kind"] in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet"):
            assert any(wanted.items() <= found.items() for found in labels), one["metadata"]["name"]
    for _, pod in pods(rendered):
        [container] = pod["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container.get(probe, {}).get("exec", {}).get("command")
            assert command is None or (command[:2] == ["firstlight", "health"] and command[2] in CHECKS)


def test_versions_run_side_by_side_and_one_is_promoted(answers: dict[str, Any]) -> None:
    found = objects(answers["everything on"]["manifests"])
    workers = {
        variables(pod["spec"]["containers"][0])["FIRSTLIGHT_WORKER_BUILD_ID"]["value"]: pod
        for name, pod in pods(found)
        if "control-worker" in name
    }
    assert {build: pod["spec"]["containers"][0]["image"].split(":")[1] for build, pod in workers.items()} == {
        "1.2.3": "1.2.3",
        "1.2.2": "1.2.2",
    }
    [promote] = [pod for name, pod in pods(found) if name.endswith("promote")]
    assert promote["spec"]["containers"][0]["args"][:3] == ["workers", "promote", "1.2.3"]
    # Tables grow before anything that needs them runs.
    [hook] = [one for one in found if one["metadata"]["name"].endswith("upgrade-database")]
    assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
