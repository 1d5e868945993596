"""`gs://` and `az://` against servers on this machine, and secrets that no message may repeat."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from obstore.store import AzureStore

from firstlight.domain.errors import FirstlightError
from gpu_worker.store.sources import Layout, describe_source, open_source
from gpu_worker.store.sources.redaction import redacted
from tests.integration import store_s3

CONTENT = {"config.json": b'{"model_type": "llama"}', "model.safetensors": bytes(range(256)) * 40}
# Azurite's own, printed in its manual: it opens nothing else.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


async def is_read_as_it_is(uri: str) -> None:
    source = open_source(uri)
    description = await source.describe()
    assert description.layout is Layout.HUGGING_FACE
    sizes = {file.name: file.size_bytes for file in description.files}
    assert sizes == {name: len(content) for name, content in CONTENT.items()}
    for file in description.files:
        part = await source.read_range(file, start=3, size_bytes=15)
        assert bytes(part) == CONTENT[file.name][3:18]


async def test_gs_speaks_to_an_xml_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: Google's XML API is S3's for what is asked here, and this server knows it as S3's only."""
    with store_s3.s3_server(tmp_path, anonymous=True) as endpoint:
        client = store_s3.bucket(endpoint)
        for name, content in CONTENT.items():
            client.put(f"tiny/{name}", content)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        await is_read_as_it_is("gs://models/tiny")


@pytest.fixture
def azurite(tmp_path: Path) -> Iterator[str]:
    """The endpoint of an Azurite; FIRSTLIGHT_AZURITE may name one that is not on the path."""
    program = os.environ.get("FIRSTLIGHT_AZURITE") or shutil.which("azurite-blob")
    if program is None:
        pytest.skip("no Azurite: npm install azurite (186 MB), and FIRSTLIGHT_AZURITE=…/.bin/azurite-blob")
    (port,) = store_s3.free_ports(1)
    flags = ["--blobPort", str(port), "--location", str(tmp_path), "--silent"]
    flags += ["--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
    try:
        _make_container(endpoint, "models")
        yield endpoint
    finally:
        process.kill()
        process.wait()


async def test_az_speaks_to_azurite(azurite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite)
    client = AzureStore("models", client_options={"allow_http": True})
    for name, content in CONTENT.items():
        client.put(f"tiny/{name}", content)
    await is_read_as_it_is("az://models/tiny")


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/model?X-Amz-Signature=SECRET",
        "https://user:SECRET@host/model",
        "s3://key:SECRET@bucket/model",
        "hf://user:SECRET@org",
        "ftp://user:SECRET@host/x?token=SECRET",
        "file://user:SECRET@host/x",
        "https://host/a/../b?sig=SECRET#SECRET",
    ],
)
def test_no_refusal_repeats_a_secret(uri: str) -> None:
    with pytest.raises(FirstlightError) as refused:
        open_source(uri)
    assert "SECRET" not in refused.value.message and "SECRET" not in str(refused.value.fields)


async def test_a_signature_of_the_clients_own_is_not_said_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", "sv=2020-08-04&sig=SECRETSECRET")
    (port,) = store_s3.free_ports(1)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
    with pytest.raises(FirstlightError) as refused:
        await describe_source("az://models/tiny")
    assert "SECRET" not in refused.value.message and refused.value.__cause__ is None


def test_what_is_no_secret_stays() -> None:
    assert redacted("cannot read s3://models/llama") == "cannot read s3://models/llama"
    assert redacted("hf://org/name@main") == "hf://org/name@main"
    assert redacted("GET https://a:b@h/x?y=z failed") == "GET https://h/x?… failed"


def _make_container(endpoint: str, name: str) -> None:
    """By its REST interface: the client used here makes none."""
    deadline = time.monotonic() + 30
    while True:
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        signed = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n"
        signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": date,
            "x-ms-version": "2021-08-06",
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}",
        }
        try:
            answer = httpx.put(f"{endpoint}/{name}?restype=container", headers=headers)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "Azurite did not start"
            time.sleep(0.1)
            continue
        assert answer.status_code == 201, answer.text
        return
