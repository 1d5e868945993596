"""Generation under a grammar, on a random model: always well-formed, and the same wherever it goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llguidance import LLMatcher
from transformers import AutoConfig, AutoModelForCausalLM

from firstlight.domain.errors import InvalidInput
from gpu_worker.engine.constraint import Grammars
from gpu_worker.engine.interface import EngineRequest, Finished, MoveOrder, Token
from gpu_worker.engine.local_engine import LocalEngine
from gpu_worker.engine.loop import DecodeLoop
from gpu_worker.engine.sampling import Sampling
from gpu_worker.engine.skeleton import Skeleton, build_skeleton
from tests.integration.api_model import ids_of, model_text, text_files
from tests.integration.engine_fixtures import smollm2_checkpoint
from tests.integration.test_engine_migration import THERE, Beside, Client
from tests.integration.tiny_models import SHAPE

CONTEXT = 512
# More scores than the tokenizer has tokens, as many models have.
VOCABULARY = 336
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fox", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 400},
        "quick": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "legs", "quick"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMAR = LLMatcher.grammar_from_json_schema(SCHEMA)
EOS = model_text().end_token_ids[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(7)
    directory = tmp_path_factory.mktemp("tiny")
    shape = {**SHAPE, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "eos_token_id": EOS}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes(text_files()[name])
    return directory


@pytest.fixture(scope="module")
def skeleton(folder: Path) -> Skeleton:
    built = build_skeleton(folder, dtype=torch.float32)
    built.bind(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())
    return built


@contextmanager
def engine_on(skeleton: Skeleton, folder: Path) -> Iterator[LocalEngine]:
    loop = DecodeLoop(
        skeleton,
        device="cpu",
        max_concurrency=8,
        max_waiting=8,
        context_length=CONTEXT,
        chunk_tokens=16,
        on_crash=lambda: None,
    )
    grammars = Grammars(folder, vocabulary_size=VOCABULARY, eos_token_ids=[EOS])
    engine = LocalEngine(loop, max_concurrency=8, context_length=CONTEXT, grammars=grammars)
    try:
        yield engine
    finally:
        engine.close()


def wanted(seed: int, **changes: object) -> EngineRequest:
    asked = EngineRequest(
        request_id=f"r{seed}",
        prompt_token_ids=tuple(ids_of("The quick brown fox")),
        max_tokens=300,
        stop_token_ids=frozenset([EOS]),
        # Hot, so that nothing but the grammar keeps it in form.
        sampling=Sampling(temperature=2.0 if seed else 0.0, seed=seed),
        grammar=GRAMMAR,
    )
    return replace(asked, **changes)  # type: ignore[arg-type]


async def run(engine: LocalEngine, asked: EngineRequest) -> tuple[list[int], Finished]:
    async with aclosing(engine.start(asked)) as stream:
        events = [event async for event in stream]
    ending = events.pop()
    assert isinstance(ending, Finished)
    return [event.token_id for event in events if isinstance(event, Token)], ending


async def test_whatever_the_model_wants_the_answer_fits_the_schema(skeleton: Skeleton, folder: Path) -> None:
    with engine_on(skeleton, folder) as engine:
        answers = set()
        for seed in range(8):
            tokens, ending = await run(engine, wanted(seed, ignore_eos=seed % 2 == 1))
            assert ending == Finished("stop")
            answers.add(text := model_text().decode(tokens))
            found = json.loads(text)
            assert list(found) == ["kind", "legs", "quick"]
            assert found["kind"] in ("fox", "dog") and 0 <= found["legs"] <= 400
            assert 1 <= len(found["quick"]) <= 3 and all(type(one) is bool for one in found["quick"])
        assert len(answers) > 4, "the grammar alone did not write them"


async def test_it_goes_on_from_any_token_as_if_nothing_had_happened(skeleton: Skeleton, folder: Path) -> None:
    with engine_on(skeleton, folder) as engine:
        whole, ending = await run(engine, wanted(3))
    # Another engine, which knows no more than the tokens.
    with engine_on(skeleton, folder) as engine:
        for given in (*range(0, len(whole), 3), len(whole)):
            resumed = wanted(3, resumed_token_ids=tuple(whole[:given]))
            assert await run(engine, resumed) == (whole[given:], ending), f"resumed behind {given} tokens"


async def test_it_is_the_same_when_it_is_moved_in_its_midst(skeleton: Skeleton, folder: Path) -> None:
    # A grammar with room: the stream is still running when it is moved.
    grammar = LLMatcher.grammar_from_json_schema(
        {"type": "array", "items": {"type": "boolean"}, "minItems": 200, "maxItems": 200}
    )
    asked = wanted(5, grammar=grammar, ignore_eos=True, max_tokens=200)
    with engine_on(skeleton, folder) as source, engine_on(skeleton, folder) as destination:
        undisturbed, ending = await run(source, asked)
        assert ending == Finished("length")
        receiver, client = Beside(destination), Client(source, destination, asked)
        receiver.clients = [client]
        following = asyncio.create_task(client.run())
        await client.has_begun.wait()
        order = MoveOrder(migration_id="migration-1", destination=THERE, delta_tokens=4)
        kinds = [event.kind async for event in source.move_out(order, receiver)]
        assert await following == undisturbed
        assert client.moved is not None and client.moved.session_id and kinds[-1] == "handed_over"


async def test_penalties_bias_and_end_tokens_bring_back_nothing_forbidden(
    skeleton: Skeleton, folder: Path
) -> None:
    biased = Sampling(
        temperature=0.0,
        logit_bias={EOS: 100.0, ids_of("x")[0]: 100.0},
        frequency_penalty=2.0,
        repetition_penalty=9.0,
    )
    with engine_on(skeleton, folder) as engine:
        tokens, ending = await run(engine, wanted(1, sampling=biased))
    assert ending == Finished("stop")
    assert json.loads(model_text().decode(tokens))["kind"] in ("fox", "dog")


async def test_a_grammar_that_does_not_hold_costs_its_request_only(skeleton: Skeleton, folder: Path) -> None:
    with engine_on(skeleton, folder) as engine:
        for changes in (
            {"grammar": "no grammar"},
            {"grammar": LLMatcher.grammar_from_lark("start: <|none|>")},
            {"resumed_token_ids": tuple(ids_of("fox"))},
        ):
            with pytest.raises(InvalidInput):
                await run(engine, wanted(1, **changes))
        assert (await run(engine, wanted(1)))[1] == Finished("stop")


def test_a_tokenizer_that_is_missing_or_too_large_is_told(folder: Path, tmp_path: Path) -> None:
    for grammars in (
        Grammars(tmp_path, vocabulary_size=VOCABULARY, eos_token_ids=[EOS]),
        Grammars(folder, vocabulary_size=20, eos_token_ids=[2]),
    ):
        with pytest.raises(InvalidInput, match="tokenizer"):
            grammars.constraint(GRAMMAR)


def test_the_tokenizer_is_found_where_its_folder_was(folder: Path, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    grammars = Grammars(before, vocabulary_size=VOCABULARY, eos_token_ids=[EOS])
    before.rename(after)
    (after / "tokenizer.json").unlink()
    assert grammars.constraint(GRAMMAR).allowed().any()


@pytest.mark.parametrize("later", ["offered/tiny/small", "offered/tiny", "checkpoints/tiny"])
def test_a_tokenizer_that_comes_behind_the_first_layer_is_found(
    folder: Path, tmp_path: Path, later: str
) -> None:
    offered = tmp_path / "offered" / "tiny"
    offered.mkdir(parents=True)
    grammars = Grammars(offered, vocabulary_size=VOCABULARY, eos_token_ids=[EOS])
    with pytest.raises(InvalidInput, match="not there"):
        grammars.constraint(GRAMMAR)
    (tmp_path / later).mkdir(parents=True, exist_ok=True)
    (tmp_path / later / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    assert grammars.constraint(GRAMMAR).allowed().any()


def test_a_tokenizer_from_gguf_follows_a_grammar() -> None:
    directory = smollm2_checkpoint()
    from api.text.model_text import ModelText

    text = ModelText({"tokenizer.json": (directory / "tokenizer.json").read_bytes()})
    grammars = Grammars(directory, vocabulary_size=49152, eos_token_ids=[2])
    ids = text.encode('{"kind":"dog","legs":4,"quick":[true]}', add_special_tokens=False)
    for given in range(len(ids)):
        constraint = grammars.constraint(GRAMMAR, generated=ids[:given])
        assert constraint.allowed()[ids[given]] and not constraint.is_complete
        assert not constraint.allowed()[2]
    assert grammars.constraint(GRAMMAR, generated=ids).is_complete
