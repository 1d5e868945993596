"""Vectors of models in the layout of sentence-transformers, against transformers' own hidden states."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import AutoModel

from firstlight.domain.errors import (
    ContextTooLong,
    EngineError,
    FirstlightError,
    InstanceDraining,
    InvalidInput,
    QueueFull,
    SourceCorrupt,
    StaleEpoch,
)
from firstlight.rpc import engine_pb2, engine_pb2_grpc
from firstlight.rpc.channels import Channels
from firstlight.rpc.clients import InferenceClient
from gpu_worker.convert.conversion import convert
from gpu_worker.convert.planning import plan
from gpu_worker.engine.interface import EmbeddingRequest, EngineRequest, Token
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.service import InferenceService
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from gpu_worker.engine.state import EngineState
from native_loader import load_state_dict
from tests.integration.engine_fixtures import attach_command
from tests.integration.plan_filling import filled
from tests.integration.tiny_models import add_pooling, write_tiny_model

CHUNK = 8
CONTEXT = 64
EPOCH = 7
POISON = 13
# Shorter than a chunk, a chunk, one more, many, and one token.
TEXTS = [tuple((7 * start + step * step) % 90 + 1 for step in range(length)) for start, length in
         enumerate((3, 8, 9, 40, 1, 17, 64))]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A tiny model, and how it embeds."""

    model: str
    mode: str
    normalizes: bool
    has_head: bool


CASES = {
    "qwen3 last token, body only": Case("qwen3", "lasttoken", True, False),
    "llama mean, tied head": Case("llama tied", "mean_tokens", True, True),
    "gemma2 first token": Case("gemma2", "cls_token", False, True),
    "gpt_neox mean, body only": Case("gpt_neox", "mean_tokens", False, False),
}


def written(directory: Path, case: Case) -> Path:
    write_tiny_model(directory, case.model, has_head=case.has_head)
    return add_pooling(directory, case.mode, normalizes=case.normalizes)


def converted(source: Path, directory: Path) -> Skeleton:
    convert(source, directory, dtype="float32", model="m", revision="r", on_progress=lambda *_: None)
    skeleton = build_skeleton(directory, dtype=torch.float32)
    skeleton.bind(load_state_dict(directory))
    return skeleton


def by_hand(source: Path, case: Case, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """(texts, hidden): transformers' own states of each text alone, pooled as the case says."""
    attention = "eager" if case.model == "gemma2" else "sdpa"
    model = AutoModel.from_pretrained(source, dtype=torch.float32, attn_implementation=attention).eval()
    rows = []
    for text in texts:
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([list(text)]), use_cache=False).last_hidden_state[0]
        pooled = {"lasttoken": states[-1], "mean_tokens": states.mean(0), "cls_token": states[0]}[case.mode]
        rows.append(normalize(pooled, dim=0) if case.normalizes else pooled)
    return torch.stack(rows)


@contextmanager
def engine_on(skeleton: Skeleton, *, slots: int = 4, waiting: int = 4) -> Iterator[LocalEngine]:
    loop = DecodeLoop(
        skeleton,
        device="cpu",
        max_concurrency=slots,
        max_waiting=waiting,
        context_length=CONTEXT,
        chunk_tokens=CHUNK,
        on_crash=lambda: None,
    )
    engine = LocalEngine(loop, max_concurrency=slots, context_length=CONTEXT)
    try:
        yield engine
    finally:
        engine.close()


def asking(*texts: Sequence[int]) -> EmbeddingRequest:
    return EmbeddingRequest(request_id="r", inputs=tuple(tuple(text) for text in texts))


async def embed(engine: LocalEngine, *texts: Sequence[int]) -> list[bytes]:
    found = {event.index: event.vector async for event in engine.embed(asking(*texts))}
    return [found[index] for index in range(len(texts))]


def as_rows(vectors: Sequence[bytes]) -> torch.Tensor:
    return torch.stack([torch.frombuffer(bytearray(one), dtype=torch.float32) for one in vectors])


@pytest.fixture(scope="module")
def skeleton(tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    """One that embeds and generates."""
    folder = tmp_path_factory.mktemp("both")
    return converted(written(folder / "source", CASES["llama mean, tied head"]), folder / "m")


def of_kind(skeleton: Skeleton, kind: type[Skeleton]) -> Skeleton:
    other = kind.__new__(kind)
    other.__dict__.update(skeleton.__dict__)
    return other


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_vectors_are_transformers_own_states_pooled(tmp_path: Path, case: Case) -> None:
    source = written(tmp_path / "source", case)
    with engine_on(converted(source, tmp_path / "m")) as engine:
        together = await embed(engine, *TEXTS)
        alone = [(await embed(engine, text))[0] for text in TEXTS]
        crowd = await asyncio.gather(*(embed(engine, *TEXTS) for _ in range(3)))
    torch.testing.assert_close(as_rows(together), by_hand(source, case, TEXTS), rtol=1e-4, atol=1e-5)
    assert together == alone
    assert crowd == [together] * 3


@pytest.mark.parametrize("name", ["qwen3 last token, body only", "llama mean, tied head"])
def test_a_plan_of_an_embedder_is_its_conversion(tmp_path: Path, name: str) -> None:
    source = written(tmp_path / "source", CASES[name])
    with safe_open(source / "model.safetensors", "pt") as file:
        assert any(key.startswith("model.") for key in file.keys()) is CASES[name].has_head  # noqa: SIM118
    whole = convert(
        source, tmp_path / "m", dtype="bfloat16", model="m", revision="r", on_progress=lambda *_: None
    )
    made = plan(source, dtype="bfloat16", model="m", revision="r")
    assert made.manifest.tensors == whole.tensors and made.manifest.aliases == whole.aliases
    assert filled(made, source) == (tmp_path / "m" / "partition-0.bin").read_bytes()
    kept = dict(made.files)["embedding.json"]
    assert kept == (tmp_path / "m" / "embedding.json").read_bytes()
    assert json.loads(kept)["generates"] is CASES[name].has_head


@pytest.mark.parametrize("has_head", [True, False])
def test_weights_are_found_with_and_without_the_models_prefix(tmp_path: Path, has_head: bool) -> None:
    """Qwen3-Embedding calls itself a causal model with a tied head, and names its tensors as a body does."""
    source = write_tiny_model(tmp_path / "source", "qwen3", tie_word_embeddings=True)
    add_pooling(source, "lasttoken", normalizes=True)
    weights = source / "model.safetensors"
    tensors = load_file(weights)
    if has_head:
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3Model"]}))
    convert(source, tmp_path / "m", dtype="float32", model="m", revision="r", on_progress=lambda *_: None)
    state = load_state_dict(tmp_path / "m")
    assert ("lm_head.weight" in state) is has_head
    bare, full = "layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    # The other way round than the source has it.
    assert torch.equal(*((state[full], tensors[bare]) if has_head else (state[bare], tensors[full])))
    made = plan(source, dtype="float32", model="m", revision="r")
    assert filled(made, source) == (tmp_path / "m" / "partition-0.bin").read_bytes()


def test_a_pooling_of_another_size_is_corrupt(tmp_path: Path) -> None:
    source = add_pooling(write_tiny_model(tmp_path / "s", "qwen3"), "lasttoken", normalizes=True, size=64)
    with pytest.raises(SourceCorrupt, match="64"):
        plan(source, dtype="float32", model="m", revision="r")


async def test_streams_go_on_beside_embeddings_and_neither_changes_the_other(skeleton: Skeleton) -> None:
    wanted = EngineRequest(request_id="s", prompt_token_ids=(5, 6, 7), max_tokens=40, ignore_eos=True)
    many = [TEXTS[index % len(TEXTS)] for index in range(60)]
    with engine_on(skeleton) as engine:
        alone = [event async for event in engine.start(wanted)]
        quiet = await embed(engine, *many)
        async with aclosing(engine.start(wanted)) as stream:
            events = [await anext(stream)]
            vectors = asyncio.ensure_future(embed(engine, *many))
            events += [event async for event in stream]
            # Many passes of a chunk each: the stream had a token in every one of them.
            assert not vectors.done()
            assert await vectors == quiet
            # One that comes behind them does not wait for them.
            vectors = asyncio.ensure_future(embed(engine, *many))
            async with asyncio.timeout(5):
                while not engine.load().running:  # noqa: ASYNC110 - the loop's own thread
                    await asyncio.sleep(0)
            late = [event async for event in engine.start(wanted)]
            assert not vectors.done()
            assert await vectors == quiet
    assert ids(events) == ids(late) == ids(alone)


def ids(events: Sequence[object]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, Token)]


async def test_one_place_for_all_inputs_and_free_when_the_client_leaves(skeleton: Skeleton) -> None:
    many = [TEXTS[3]] * 200
    with engine_on(skeleton, slots=1, waiting=1) as engine:
        async with aclosing(engine.embed(asking(*many))) as stream:
            first = await anext(stream)
            assert (engine.load().running, engine.load().waiting) == (1, 0)
            waiting = asyncio.ensure_future(embed(engine, TEXTS[0]))
            async with asyncio.timeout(5):
                while not engine.load().waiting:  # noqa: ASYNC110 - the loop's own thread
                    await asyncio.sleep(0)
            with pytest.raises(QueueFull):
                await embed(engine, TEXTS[0])
        assert first.prefill_s > 0
        # Long before 200 inputs would have been through.
        async with asyncio.timeout(5):
            assert len(await waiting) == 1
        assert engine.load().running == 0


class FragileSkeleton(Skeleton):
    """Fails as a GPU out of memory does, on any pass that holds the token POISON."""

    def logits(self, token_ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        scores = super().logits(token_ids, positions, rows)
        if POISON in token_ids.tolist():
            raise torch.OutOfMemoryError("no memory left for this one")
        return scores


async def test_one_requests_failure_is_its_own(skeleton: Skeleton) -> None:
    with engine_on(skeleton) as engine:
        expected = await embed(engine, *TEXTS[:3])
    with engine_on(of_kind(skeleton, FragileSkeleton)) as engine:
        good, bad, again = await asyncio.gather(
            embed(engine, *TEXTS[:3]),
            embed(engine, (1, 2), (POISON, 3), (4, 5)),
            embed(engine, *TEXTS[:3]),
            return_exceptions=True,
        )
        assert await embed(engine, *TEXTS[:3]) == expected
        assert engine.load().running == 0
    assert isinstance(bad, EngineError)
    assert good == again == expected


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        ([], InvalidInput),
        ([(1, 2), ()], InvalidInput),
        ([(1, 97)], InvalidInput),
        ([(1,) * (CONTEXT + 1)], ContextTooLong),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    skeleton: Skeleton, texts: list[tuple[int, ...]], error: type[FirstlightError]
) -> None:
    with engine_on(skeleton) as engine:
        with pytest.raises(error):
            await embed(engine, *texts)
        assert engine.load().running == 0


async def test_each_model_does_what_it_is_for(tmp_path: Path) -> None:
    bare = converted(write_tiny_model(tmp_path / "a", "llama"), tmp_path / "generates")
    with engine_on(bare) as engine, pytest.raises(InvalidInput, match="no embeddings"):
        await embed(engine, (1, 2))
    source = written(tmp_path / "b", CASES["qwen3 last token, body only"])
    prompt = EngineRequest(request_id="g", prompt_token_ids=(1,), max_tokens=1)
    with (
        engine_on(converted(source, tmp_path / "embeds")) as engine,
        pytest.raises(InvalidInput, match="no head"),
    ):
        await anext(engine.start(prompt))


# Any: the client's method is generic in messages.
@asynccontextmanager
async def served(engine: LocalEngine) -> AsyncIterator[tuple[InferenceClient, EngineState, Any]]:
    """The engine behind its service, as its process serves it."""
    state = EngineState()
    state.attachment = attach_command(epoch=EPOCH)
    state.become_ready(engine)
    server, service = grpc.aio.server(), InferenceService(state)
    engine_pb2_grpc.add_InferenceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Channels() as channels:
            yield InferenceClient(channels, f"127.0.0.1:{port}"), state, service
    finally:
        await server.stop(None)


def call(*texts: Sequence[int], epoch: int = EPOCH) -> engine_pb2.EmbedRequest:
    inputs = [engine_pb2.TokenSequence(token_ids=text) for text in texts]
    return engine_pb2.EmbedRequest(request_id="r", epoch=epoch, inputs=inputs)


async def test_the_service_fences_counts_and_drains(skeleton: Skeleton) -> None:
    with engine_on(skeleton) as engine:
        expected = await embed(engine, *TEXTS[:2])
        async with served(engine) as (client, state, service):
            chunks = [chunk async for chunk in client.embed(call(*TEXTS[:2]))]
            assert {chunk.index: chunk.vector for chunk in chunks} == dict(enumerate(expected))
            with pytest.raises(StaleEpoch):
                await anext(aiter(client.embed(call((1, 2), epoch=EPOCH - 1))))
            with pytest.raises(ContextTooLong):
                await anext(aiter(client.embed(call((1,) * (CONTEXT + 1)))))
            left = client.embed(call(*[TEXTS[3]] * 400))
            await anext(aiter(left))
            assert (state.active, state.idle_s) == (1, 0.0)
            await left.aclose()  # type: ignore[attr-defined]
            async with asyncio.timeout(5):
                assert await state.wait_idle(0.0) >= 0.0
                while engine.load().running:  # noqa: ASYNC110 - the loop's own thread
                    await asyncio.sleep(0)
            cut = client.embed(call(*[TEXTS[3]] * 400))
            await anext(aiter(cut))
            assert await service.drain(0.0) == 1
            with pytest.raises(InstanceDraining):
                async for _ in cut:
                    pass
