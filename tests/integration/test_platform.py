"""The whole of Firstlight with the real model: what a client sees, and what bad input gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from openai import OpenAI
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import AutoModel

from benchmarks.platform import Platform
from tests.integration.engine_fixtures import smollm2_gguf
from tests.platform_fixtures import running_platform, tiny_embedder, tiny_source

REAL = "smollm2"
SSD_BYTES = 960 << 20
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    # Less than the DRAM pools, so that there is a checkpoint that only the SSD caches have no room for.
    with running_platform(
        tmp_path_factory.mktemp("whole"), FIRSTLIGHT_SSD_CAPACITY_BYTES=str(SSD_BYTES)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(platform: Platform) -> OpenAI:
    return OpenAI(base_url=f"{platform.api_url}/v1", api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def real_model(platform: Platform) -> str:
    """SmolLM2 deployed from its GGUF, started by the first request that asks for it."""
    platform.post("/admin/v1/models", {"name": REAL, "source": smollm2_gguf().as_uri(), "keep_alive_s": 600})
    return REAL


def deploy(platform: Platform, name: str, source: str, **settings: object) -> httpx.Response:
    body = {"name": name, "source": source, **settings}
    return platform.http.post(f"{platform.api_url}/admin/v1/models", json=body)


def chat(platform: Platform, model: object, **changes: object) -> httpx.Response:
    body = {"model": model, "messages": QUESTION, "max_tokens": 4, **changes}
    return platform.http.post(f"{platform.api_url}/v1/chat/completions", json=body)


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def instances(platform: Platform, model: str) -> list[dict[str, Any]]:
    return list(platform.get(f"/admin/v1/instances?model={model}")["instances"])


def gpus_held(platform: Platform, model: str) -> int:
    hosts = platform.get("/admin/v1/hosts")["hosts"]
    return sum(gpu["model"] == model for host in hosts for gpu in host["gpus"])


# --- the real model ---


@pytest.mark.slow
def test_a_hundred_requests_cause_one_start_and_all_are_answered(
    platform: Platform, client: OpenAI, real_model: str
) -> None:
    def ask(index: int) -> int:
        # A short prompt: this is about starts, and a hundred prefills of a chat take two cores half a minute.
        answer = client.completions.create(model=real_model, prompt="Paris is", max_tokens=2, temperature=0)
        assert answer.usage is not None
        return answer.usage.completion_tokens

    with ThreadPoolExecutor(100) as pool:
        counts = list(pool.map(ask, range(100)))
    assert counts == [2] * 100
    assert len(instances(platform, real_model)) == 1
    start = platform.get(f"/admin/v1/starts?model={real_model}")["starts"]
    assert len(start) == 1


def test_the_model_answers_sensibly_and_streams_what_it_answers(client: OpenAI, real_model: str) -> None:
    whole = client.chat.completions.create(model=real_model, messages=QUESTION, max_tokens=16, temperature=0)
    text = whole.choices[0].message.content or ""
    assert "Paris" in text
    stream = client.chat.completions.create(
        model=real_model,
        messages=QUESTION,
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_a_stop_string_ends_the_text_before_itself(client: OpenAI, real_model: str) -> None:
    answer = client.chat.completions.create(
        model=real_model, messages=QUESTION, max_tokens=32, temperature=0, stop=["Paris"]
    )
    assert "capital" in (answer.choices[0].message.content or "")
    assert "Paris" not in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_a_sampled_answer_is_repeated_by_its_seed(client: OpenAI, real_model: str) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=real_model, messages=QUESTION, max_tokens=6, temperature=1.5, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(4)}) > 1


class Capital(BaseModel):
    city: str
    country: str


def test_a_structured_answer_fits_its_schema_and_makes_sense(client: OpenAI, real_model: str) -> None:
    question: list[Any] = [{"role": "user", "content": "What is the capital of France? Answer in JSON."}]
    answer = client.chat.completions.parse(
        model=real_model, messages=question, response_format=Capital, max_tokens=80, temperature=0
    )
    found = answer.choices[0].message.parsed
    assert found is not None and found.city == "Paris"
    assert answer.choices[0].finish_reason == "stop"
    # Hot enough that the model by itself writes no JSON at all.
    wild = client.chat.completions.create(
        model=real_model,
        messages=question,
        response_format={"type": "json_object"},
        n=2,
        seed=1,
        max_tokens=300,
        temperature=1.8,
    )
    for choice in wild.choices:
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content or ""), dict)
    with pytest.raises(openai.BadRequestError, match="no tools"):
        tool: Any = {"type": "function", "function": {"name": "look_up"}}
        client.chat.completions.create(model=real_model, messages=question, tools=[tool])


def test_completions_and_models(client: OpenAI, real_model: str) -> None:
    answer = client.completions.create(
        model=real_model, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    assert real_model in {model.id for model in client.models.list().data}
    assert client.models.retrieve(real_model).id == real_model


def test_a_second_start_comes_from_dram(platform: Platform, client: OpenAI, real_model: str) -> None:
    platform.post(f"/admin/v1/models/{real_model}/scale", {"keep_alive_s": 0.1})
    platform.wait_for(
        lambda: all(row["state"] == "stopped" for row in instances(platform, real_model)),
        what="the idle instance to stop",
        deadline_s=60,
    )
    assert gpus_held(platform, real_model) == 0
    platform.post(f"/admin/v1/models/{real_model}/scale", {"keep_alive_s": 600})
    client.chat.completions.create(model=real_model, messages=QUESTION, max_tokens=1)
    platform.wait_for(
        lambda: platform.get(f"/admin/v1/starts?model={real_model}")["starts"][0]["actual"] is not None,
        what="the start to be recorded",
        deadline_s=20,
    )
    start = platform.get(f"/admin/v1/starts?model={real_model}")["starts"][0]
    assert start["tier"] == "dram"
    assert start["actual"]["bytes_moved"] == 0


def test_a_minimum_of_instances_is_kept_without_any_request(platform: Platform, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "always").as_uri()
    assert deploy(platform, "always", source, min_instances=1, keep_alive_s=0.1).status_code == 201

    def ready() -> set[str]:
        return {row["instance_id"] for row in instances(platform, "always") if row["state"] == "ready"}

    platform.wait_for(lambda: len(ready()) == 1, what="the minimum", deadline_s=60)
    (first,) = ready()
    engines = [
        engine.pid
        for host in platform.get("/admin/v1/hosts")["hosts"]
        for engine in _engines(host["host_address"])
        if engine.instance_id == first
    ]
    os.kill(engines[0], signal.SIGKILL)
    platform.wait_for(lambda: len(ready() - {first}) == 1, what="a new one", deadline_s=60)
    platform.post("/admin/v1/models/always/scale", {"min_instances": 0})
    platform.wait_for(lambda: not ready(), what="scale to zero", deadline_s=60)


def test_a_model_that_embeds_starts_and_gives_its_vectors(
    platform: Platform, client: OpenAI, tmp_path: Path
) -> None:
    source = tiny_embedder(tmp_path / "embedder")
    assert deploy(platform, "embedder", source.as_uri()).status_code == 201
    texts = ["The dog", "The quick brown fox jumps over the lazy dog."]
    answer = client.embeddings.create(model="embedder", input=texts)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")
    tokens = [[*tokenizer.encode(text).ids, end] for text in texts]
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    for row, ids in zip(answer.data, tokens, strict=True):
        with torch.inference_mode():
            state = model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(state, dim=0)
        torch.testing.assert_close(torch.tensor(row.embedding), expected, rtol=1e-4, atol=1e-5)
    assert answer.usage.prompt_tokens == sum(map(len, tokens))
    again = client.embeddings.create(model="embedder", input=tokens[1])
    assert again.data[0].embedding == answer.data[1].embedding
    refused = chat(platform, "embedder")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "model")
    (start,) = platform.get("/admin/v1/starts?model=embedder")["starts"]
    assert start["instance_id"] in {row["instance_id"] for row in instances(platform, "embedder")}
    platform.post("/admin/v1/models/embedder/scale", {"keep_alive_s": 0})
    live = ("starting", "ready", "draining")
    platform.wait_for(
        lambda: not [row for row in instances(platform, "embedder") if row["state"] in live],
        what="the instance to fall idle and end",
        deadline_s=60,
    )


def test_a_second_host_fetches_from_the_first_ones_store(platform: Platform, tmp_path: Path) -> None:
    """More instances than one host has places: the other host finds the bytes at its neighbour's."""
    source = tiny_source(tmp_path / "spread", seed=7).as_uri()
    assert deploy(platform, "spread", source, max_instances=3, min_instances=3).status_code == 201

    def begun() -> list[dict[str, Any]]:
        starts = platform.get("/admin/v1/starts?model=spread")["starts"]
        return [row for row in starts if row["actual"]]

    platform.wait_for(lambda: len(begun()) >= 3, what="three starts", deadline_s=120)
    (first,) = [row for row in begun() if row["tier"] == "remote"]
    (from_peer,) = [row for row in begun() if row["host_id"] != first["host_id"]][-1:]
    assert from_peer["predicted"]["tier"] == "peer"
    assert from_peer["predicted"]["peer_host_id"] == first["host_id"]
    # So small that the hint may have brought all of it before the start itself asked.
    assert from_peer["tier"] in ("peer", "dram")
    platform.post("/admin/v1/models/spread/scale", {"min_instances": 0, "keep_alive_s": 0.1})
    live = ("starting", "ready", "draining")
    platform.wait_for(
        lambda: not [row for row in instances(platform, "spread") if row["state"] in live],
        what="scale to zero",
        deadline_s=60,
    )


# Any: protobuf rows.
def _engines(host_address: str) -> list[Any]:
    import grpc

    from firstlight.rpc import host_pb2, host_pb2_grpc

    with grpc.insecure_channel(host_address) as channel:
        return list(host_pb2_grpc.HostStub(channel).ListEngines(host_pb2.ListEnginesRequest()).engines)


def test_the_start_can_be_read_in_temporal(platform: Platform, real_model: str) -> None:
    """Every start of the books is a workflow that completed, with the attributes operators search by."""
    import asyncio

    from temporalio.client import Client

    async def found() -> list[tuple[str, str]]:
        client = await Client.connect(platform.record.temporal_address)
        query = (
            f'WorkflowType = "ColdStart" AND FirstlightModel = "{real_model}" AND FirstlightOutcome = "ready"'
        )
        return [(run.id, str(run.status)) async for run in client.list_workflows(query)]

    starts = platform.get(f"/admin/v1/starts?model={real_model}")["starts"]
    expected = {f"cold-start/{real_model}/{row['instance_id']}" for row in starts if row["actual"]}
    platform.wait_for(
        lambda: expected <= {name for name, _ in asyncio.run(found())},
        what="the workflows to be listed",
        deadline_s=30,
    )


# --- bad input ---


def test_an_unknown_model_is_404(platform: Platform) -> None:
    response = chat(platform, "nobody")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_malformed_json_is_400(platform: Platform) -> None:
    response = platform.http.post(
        f"{platform.api_url}/v1/chat/completions",
        content=b'{"model": ',
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400
    assert "JSON" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", "hello"),
        ("max_tokens", "many"),
        ("temperature", "hot"),
        ("stop", 7),
        ("n", 0),
        ("model", 5),
    ],
)
def test_a_wrong_type_is_400_and_names_the_field(
    platform: Platform, real_model: str, field: str, value: object
) -> None:
    body = {"model": real_model, "messages": QUESTION, field: value}
    response = platform.http.post(f"{platform.api_url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert str(error_of(response)["param"]).startswith(field)


def test_a_context_that_is_too_long_is_400(platform: Platform, client: OpenAI, real_model: str) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=real_model, messages=long)  # type: ignore[arg-type]
    assert refused.value.code == "context_length_exceeded"


def test_an_unreachable_source_is_refused_at_deploy(platform: Platform, tmp_path: Path) -> None:
    for source in ("http://127.0.0.1:9/model", (tmp_path / "nothing").as_uri()):
        response = deploy(platform, "unreachable", source)
        assert response.status_code in (400, 422, 424, 502, 503), response.text
        assert error_of(response)["code"] in ("source_unreachable", "source_corrupt")
    assert platform.http.get(f"{platform.api_url}/admin/v1/models/unreachable").status_code == 404


def test_a_corrupt_source_fails_clearly_and_leaves_nothing(platform: Platform, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "corrupt")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    response = deploy(platform, "corrupt", source.as_uri())
    if response.status_code == 201:
        answer = chat(platform, "corrupt")
        assert answer.status_code == 503
        assert "source" in error_of(answer)["message"], answer.text
        assert gpus_held(platform, "corrupt") == 0
        assert {row["state"] for row in instances(platform, "corrupt")} == {"failed"}
    else:
        assert error_of(response)["code"] == "source_corrupt"


def test_a_pickle_source_is_refused(platform: Platform, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "pickle")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    response = deploy(platform, "pickle", source.as_uri())
    assert response.status_code == 400
    assert error_of(response)["code"] == "source_unsupported"


def test_a_checkpoint_whose_bytes_do_not_match_is_fetched_again(platform: Platform, tmp_path: Path) -> None:
    assert deploy(platform, "bitrot", tiny_source(tmp_path / "bitrot").as_uri()).status_code == 201
    assert chat(platform, "bitrot", temperature=0).status_code == 200
    before = chat(platform, "bitrot", temperature=0).json()["choices"][0]["message"]["content"]
    platform.post("/admin/v1/models/bitrot/scale", {"keep_alive_s": 0.0})
    platform.wait_for(lambda: gpus_held(platform, "bitrot") == 0, what="the instance to stop", deadline_s=60)
    _drop_from_dram(platform, "bitrot")
    checkpoint_id = platform.get("/admin/v1/models/bitrot")["checkpoint_id"]
    for partition in platform.state_dir.glob(f"**/checkpoints/{checkpoint_id}/partition-0.bin"):
        body = bytearray(partition.read_bytes())
        body[len(body) // 2] ^= 1
        partition.write_bytes(body)
    answer = chat(platform, "bitrot", temperature=0)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == before
    # Noticed by the host that holds them, which keeps them for a look, or by another that asked it for them.
    is_kept = any(platform.state_dir.glob("**/quarantine/*"))
    is_refused = "differs from its checksum" in platform.log_end()
    assert is_kept or is_refused, platform.log_end()


def _drop_from_dram(platform: Platform, model: str) -> None:
    import grpc

    from firstlight.rpc import store_pb2, store_pb2_grpc

    checkpoint_id = platform.get(f"/admin/v1/models/{model}")["checkpoint_id"]
    for host in platform.get("/admin/v1/hosts")["hosts"]:
        with grpc.insecure_channel(host["store_address"]) as channel:
            stub = store_pb2_grpc.StoreStub(channel)
            held = {
                row.checkpoint_id
                for row in stub.Inventory(store_pb2.InventoryRequest()).checkpoints
                if row.in_dram
            }
            if checkpoint_id in held:
                stub.Remove(store_pb2.RemoveRequest(checkpoint_id=checkpoint_id, only_dram=True))


@pytest.mark.parametrize("name", ["../etc", "a/b", "..", "/abs", "", "x" * 200])
def test_a_model_name_that_is_a_path_is_refused(platform: Platform, tmp_path: Path, name: str) -> None:
    response = deploy(platform, name, tmp_path.as_uri())
    assert response.status_code == 400
    assert error_of(response)["code"] in ("invalid_name", "invalid_input")


def test_a_duplicate_deploy_names_what_differs(platform: Platform, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "twice").as_uri()
    assert deploy(platform, "twice", source, keep_alive_s=5).status_code == 201
    assert deploy(platform, "twice", source, keep_alive_s=5).status_code == 200
    response = deploy(platform, "twice", source, keep_alive_s=6)
    assert response.status_code == 409
    assert error_of(response)["code"] == "model_exists"
    assert "keep_alive_s" in error_of(response)["message"]


def test_programs_read_what_the_command_line_did(platform: Platform, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "scripted")
    deployed = json.loads(firstlight(platform, "deploy", "scripted", str(source), "--json"))
    assert (deployed["name"], deployed["source"]) == ("scripted", source.as_uri())
    # The likeliest token each time: one of the 321 ends an answer, and chance would draw it now and then.
    asked = ("chat", "scripted", "Hello!", "--max-tokens", "4", "--temperature", "0", "--json")
    answer = json.loads(firstlight(platform, *asked))
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 4
    assert "--json" in firstlight(platform, "chat", "scripted", "--json", fails_with=2)
    deleted = json.loads(firstlight(platform, "delete", "scripted", "--json"))
    assert isinstance(deleted["live_instances"], int)


def firstlight(platform: Platform, *arguments: str, fails_with: int = 0) -> str:
    """What the command prints; on stderr, where it is to fail. Nobody can type anything."""
    done = subprocess.run(
        [sys.executable, "-m", "firstlight.cli", *arguments, "--api", platform.api_url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == fails_with, done.stderr
    if fails_with:
        assert done.stdout == ""
    return done.stderr if fails_with else done.stdout


def test_a_delete_during_a_start_leaves_nothing(platform: Platform, tmp_path: Path) -> None:
    deploy(platform, "fleeting", tiny_source(tmp_path / "fleeting").as_uri())
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(chat(platform, "fleeting")))
    asking.start()
    platform.wait_for(
        lambda: any(row["state"] == "starting" for row in instances(platform, "fleeting")),
        what="the start",
        deadline_s=30,
    )
    assert platform.http.delete(f"{platform.api_url}/admin/v1/models/fleeting").status_code == 202
    asking.join(60)
    assert answers and answers[0].status_code in (404, 503), [json.dumps(a.json()) for a in answers]
    platform.wait_for(
        lambda: platform.http.get(f"{platform.api_url}/admin/v1/models/fleeting").status_code == 404,
        what="the model to be gone",
        deadline_s=60,
    )
    assert gpus_held(platform, "fleeting") == 0


def test_what_no_ssd_cache_holds_is_refused_and_says_so(platform: Platform, tmp_path: Path) -> None:
    source = tiny_source(tmp_path / "big")
    # Larger than every host's cache, without a byte on this machine's disk.
    os.truncate(source / "model.safetensors", SSD_BYTES + (8 << 20))
    response = deploy(platform, "big", source.as_uri())
    answer = response if response.is_error else chat(platform, "big")
    assert answer.status_code == 503, answer.text
    assert "SSD cache" in error_of(answer)["message"]
    assert answer.headers["retry-after"]
    assert gpus_held(platform, "big") == 0
