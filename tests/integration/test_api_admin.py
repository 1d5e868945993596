"""Keys, operators' routes, and that OpenAPI tells the truth."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from api_stand import NOWHERE, Stand, describe, stand, until
from pydantic import BaseModel

from api.admin import estimates, fields
from api.app import create_app
from api.openai import answers
from api.services import Dependencies
from firstlight.database.connection import Database
from firstlight.database.keys_repository import create_key, list_keys, revoke_key
from firstlight.domain.errors import InvalidSettings
from firstlight.launcher.api_server import lazy_client
from firstlight.settings import Settings

DEPLOY = {"name": "qwen-small", "source": "hf://example/qwen-small"}
# More than the stand takes of one body.
TOO_LARGE = {"much": "x" * (300 << 10)}


@pytest_asyncio.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(database, tmp_path) as made:
        yield made


async def test_deploying_twice_is_one_model_and_a_difference_is_named(api: Stand) -> None:
    first = await api.http.post("/admin/v1/models", json=DEPLOY)
    assert first.status_code == 201, first.text
    assert first.json()["checkpoint_id"].startswith("qwen-small@")
    assert first.json()["keep_alive_s"] == 300.0
    again = await api.http.post("/admin/v1/models", json=DEPLOY)
    assert (again.status_code, again.json()["created_at_unix_s"]) == (200, first.json()["created_at_unix_s"])
    other = await api.http.post("/admin/v1/models", json={**DEPLOY, "max_concurrency": 3})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "model_exists")
    assert "max_concurrency" in other.json()["error"]["message"]
    assert [model.id async for model in await api.client.models.list()] == ["qwen-small"]


@pytest.mark.parametrize("name", ["../etc", "a/b", "", ".hidden", "a..b", "x" * 97, "naïve"])
async def test_a_name_that_is_a_path_is_refused(api: Stand, name: str) -> None:
    response = await api.http.post("/admin/v1/models", json={**DEPLOY, "name": name})
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == ("invalid_name", "name")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"dtype": "int3"}, "dtype"),
        ({"gpu_count": 0}, "gpu_count"),
        ({"made_up": 1}, "made_up"),
        ({"source": 7}, "source"),
    ],
)
async def test_wrong_settings_are_named(api: Stand, change: dict[str, object], param: str) -> None:
    response = await api.http.post("/admin/v1/models", json={**DEPLOY, **change})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_scaling_changes_what_is_given(api: Stand) -> None:
    await api.http.post("/admin/v1/models", json=DEPLOY)
    changed = await api.http.post("/admin/v1/models/qwen-small/scale", json={"max_instances": 3})
    assert (changed.json()["max_instances"], changed.json()["max_concurrency"]) == (3, 8)
    assert api.services.catalog.max_instances_of("qwen-small") == 3
    assert (await api.http.post("/admin/v1/models/absent/scale", json={})).status_code == 404


async def test_another_replicas_models_and_instances_are_seen(api: Stand) -> None:
    # Rows written by somebody else reach this process by notification alone.
    engine = await api.warm("tiny")
    await until(lambda: api.services.routes_of("tiny"))
    assert api.services.routes_of("tiny")[0].endpoint == engine.endpoint
    rows = (await api.http.get("/admin/v1/instances", params={"model": "tiny"})).json()["instances"]
    assert [row["state"] for row in rows] == ["ready"]
    hosts = (await api.http.get("/admin/v1/hosts")).json()["hosts"]
    assert {host["host_id"]: len(host["gpus"]) for host in hosts} == {"host-a": 1, "host-b": 1}


async def test_keys_of_the_settings_are_needed_once_there_are_any(database: Database, tmp_path: Path) -> None:
    async with stand(database, tmp_path, api_keys="alpha, beta", api_key="beta") as api:
        await api.warm("tiny")
        assert (await api.http.get("/v1/models")).status_code == 200
        for headers in ({}, {"authorization": "Bearer gamma"}, {"authorization": "Basic YWxwaGE="}):
            api.http.headers.pop("authorization", None)
            response = await api.http.get("/v1/models", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
            assert (await api.http.get("/metrics", headers=headers)).status_code == 401
            assert (await api.http.get("/healthz", headers=headers)).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            await api.client.with_options(api_key="wrong").models.list()


async def test_keys_of_the_table_have_scopes_and_can_be_revoked(database: Database, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"for-inference").hexdigest()
    async with database.transaction() as session:
        await create_key(session, name="one", key_hash=digest, scope="inference")
    async with stand(database, tmp_path, api_key="for-inference") as api:
        assert (await api.http.get("/v1/models")).status_code == 200
        refused = await api.http.get("/admin/v1/models")
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        async with database.transaction() as session:
            await revoke_key(session, (await list_keys(session))[0].key_id)
        await until(lambda: api.services.keys.find("for-inference") is None)
        # The door does not open again when the last key is revoked.
        assert (await api.http.get("/v1/models")).status_code == 401


async def test_an_open_listener_without_keys_refuses_to_start(database: Database, tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path, api_host="0.0.0.0", temporal_address=NOWHERE)
    app = create_app(Dependencies(settings, database, await lazy_client(settings), describe))
    with pytest.raises(InvalidSettings, match="FIRSTLIGHT_API_KEYS"):
        async with app.router.lifespan_context(app):
            pass


ANSWERS: dict[str, type[BaseModel]] = {
    kind.__name__: kind
    for module in (answers, fields, estimates)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, BaseModel)
}


def documented(document: dict[str, Any], path: str, method: str, status: int) -> type[BaseModel]:
    """The class of the schema that OpenAPI promises for this answer."""
    promised = document["paths"][path][method]["responses"]
    assert str(status) in promised, f"{method} {path} answered {status}, documented are {sorted(promised)}"
    reference = promised[str(status)]["content"]["application/json"]["schema"]["$ref"]
    return ANSWERS[reference.rpartition("/")[2]]


async def test_openapi_knows_what_is_for_the_callers_own_books(api: Stand) -> None:
    document = (await api.http.get("/openapi.json")).json()
    for route in ("chat/completions", "completions", "embeddings"):
        body = document["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"]["application/json"]
        assert not body["schema"]["additionalProperties"]
        assert {"metadata", "safety_identifier", "prompt_cache_key"} <= body["schema"]["properties"].keys()


async def test_openapi_tells_the_truth(api: Stand) -> None:
    await api.warm("tiny")
    document = (await api.http.get("/openapi.json")).json()
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    calls: list[tuple[str, str, str, object]] = [
        ("post", "/v1/chat/completions", "", {**chat, "logprobs": True, "top_logprobs": 1}),
        ("post", "/v1/chat/completions", "", {**chat, "model": "absent"}),
        ("post", "/v1/chat/completions", "", {**chat, "tools": [1]}),
        ("post", "/v1/chat/completions", "", {**chat, "user": "x" * (300 << 10)}),
        ("post", "/v1/completions", "", {"model": "tiny", "prompt": "x", "logprobs": 1}),
        ("get", "/v1/models", "", None),
        ("get", "/v1/models/{name}", "tiny", None),
        ("get", "/v1/models/{name}", "absent", None),
        ("post", "/admin/v1/models", "", DEPLOY),
        ("post", "/admin/v1/models", "", DEPLOY),
        ("post", "/admin/v1/models", "", {**DEPLOY, "dtype": "float16"}),
        ("post", "/admin/v1/models", "", {}),
        ("get", "/admin/v1/models", "", None),
        ("get", "/admin/v1/models/{name}", "tiny", None),
        ("get", "/admin/v1/models/{name}", "absent", None),
        ("post", "/admin/v1/models/{name}/scale", "tiny", {"max_instances": 2}),
        ("post", "/admin/v1/models/{name}/start", "tiny", {}),
        ("post", "/admin/v1/models/{name}/start", "absent", {}),
        ("get", "/admin/v1/models/{name}/explain", "tiny", None),
        ("get", "/admin/v1/models/{name}/explain", "absent", None),
        ("get", "/admin/v1/estimates", "", None),
        ("get", "/admin/v1/hosts", "", None),
        ("get", "/admin/v1/instances", "", None),
        ("get", "/admin/v1/starts", "", None),
        ("get", "/admin/v1/decisions", "", None),
        ("get", "/admin/v1/decisions/{decision_id}", "absent", None),
        ("delete", "/admin/v1/models/{name}", "qwen-small", None),
        ("delete", "/admin/v1/models/{name}", "qwen-small", None),
        # No body is asked for, a large one is refused all the same.
        ("delete", "/admin/v1/models/{name}", "tiny", TOO_LARGE),
        ("delete", "/admin/v1/keys/{key_id}", "", TOO_LARGE),
        ("post", "/admin/v1/hosts/{host_id}/drain", "", TOO_LARGE),
        ("post", "/admin/v1/hosts/{host_id}/undrain", "", TOO_LARGE),
    ]
    for method, path, name, body in calls:
        url = path.replace("{name}", name).replace("{decision_id}", name)
        response = await api.http.request(method, url, json=body)
        kind = documented(document, path, method, response.status_code)
        answer = kind.model_validate(response.json())
        assert answer.model_dump().keys() == response.json().keys(), (method, url)
    await asyncio.sleep(0)
