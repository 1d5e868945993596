"""The Compose file, against the Compose specification's own schema and our own laws."""

from __future__ import annotations

import ipaddress
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.unit.deploy_files import DEPLOY, SECRET_VARIABLES, VARIABLES

FOLDER = DEPLOY / "compose"
FILES = ("compose.yaml", "compose.gpu.yaml")
# Images that are not ours are pinned to a version.
_PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+(\.\d+)?([.-][a-z0-9.]+)?")


# Any: the document of a Compose file.
@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return document


def test_the_specification_takes_both_files() -> None:
    pytest.importorskip("check_jsonschema")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"),
            *(str(FOLDER / name) for name in FILES),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_no_secret_is_in_the_file_and_no_variable_misspelt(compose: dict[str, Any]) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if variable in SECRET_VARIABLES or "PASSWORD" in variable or variable.endswith("_PWD"):
                assert re.search(r"\$\{[A-Z_]+:\?", str(value)), f"{name}: {variable}"
            assert not variable.startswith("FIRSTLIGHT_") or variable in VARIABLES, variable
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    example = (FOLDER / "env.example").read_text()
    assert required == set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE))


def test_who_is_waited_for_says_when_it_is_ready(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}"


def test_hosts_listen_at_the_addresses_they_are_reached_at(compose: dict[str, Any]) -> None:
    [network] = compose["networks"]["fleet"]["ipam"]["config"]
    hosts = {name: one for name, one in compose["services"].items() if name.startswith("gpu-host")}
    assert len(hosts) == 2
    addresses, ids = set(), set()
    for host in hosts.values():
        address = host["networks"]["fleet"]["ipv4_address"]
        assert host["environment"]["FIRSTLIGHT_HOST_BIND_ADDRESS"] == address
        assert ipaddress.ip_address(address) in ipaddress.ip_network(network["subnet"])
        addresses.add(address)
        ids.add(host["environment"]["FIRSTLIGHT_HOST_IDS"])
        drain_s = int(host["environment"]["FIRSTLIGHT_DRAIN_ON_STOP_S"])
        assert int(host["stop_grace_period"].rstrip("s")) >= drain_s + 20
        assert host["ulimits"]["memlock"] == -1
    assert len(addresses) == len(ids) == 2


def test_images_are_pinned_and_ours_are_of_the_dockerfile(compose: dict[str, Any]) -> None:
    stages = set(re.findall(r"AS (\S+)$", (DEPLOY / "docker" / "Dockerfile").read_text(), re.MULTILINE))
    for name, service in compose["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages
            assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        else:
            assert _PINNED.fullmatch(service["image"]), service["image"]
