"""What says that a model embeds, as its source has it and as a checkpoint keeps it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from api.openai.vectors import embeddings_json, figures, shorten
from firstlight.domain.embedding import Embedding, Pooling, embedding_json, parse_embedding
from firstlight.domain.errors import SourceCorrupt, SourceError, SourceUnsupported
from gpu_worker.convert.sentence_layout import SentenceLayout, sentence_layout
from gpu_worker.convert.source import ModelSource
from gpu_worker.store.sources.layout import choose

OLD = "sentence_transformers.models."
NEW = "sentence_transformers.sentence_transformer.modules."
LAST = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}


def modules(*kinds: str, package: str = OLD) -> list[dict[str, Any]]:
    return [
        {"idx": index, "path": f"{index}_{kind}" if index else "", "type": package + kind}
        for index, kind in enumerate(kinds)
    ]


def source(
    directory: Path, listed: object, pooling: object, *, architecture: str = "Qwen3Model"
) -> ModelSource:
    (directory / "1_Pooling").mkdir()
    (directory / "modules.json").write_text(json.dumps(listed))
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return ModelSource(directory, None)


@pytest.mark.parametrize(
    ("listed", "pooling", "expected"),
    [
        (modules("Transformer", "Pooling"), LAST, (Pooling.LAST, False)),
        (
            modules("Transformer", "Pooling", "Normalize"),
            {"pooling_mode_mean_tokens": True},
            (Pooling.MEAN, True),
        ),
        (
            modules("Transformer", "Pooling", "Normalize", package=NEW),
            {"pooling_mode": "cls"},
            (Pooling.FIRST, True),
        ),
    ],
)
def test_releases_old_and_new_are_understood(
    tmp_path: Path, listed: object, pooling: object, expected: tuple[Pooling, bool]
) -> None:
    found = sentence_layout(source(tmp_path, listed, pooling))
    assert found == SentenceLayout(*expected, size=None, has_head=False)


@pytest.mark.parametrize(
    ("architecture", "has_head"),
    [("Qwen3Model", False), ("Qwen3ForCausalLM", True), ("GPT2LMHeadModel", True), ("GPT2Model", False)],
)
def test_the_architecture_tells_whether_there_is_a_head(
    tmp_path: Path, architecture: str, has_head: bool
) -> None:
    found = sentence_layout(
        source(
            tmp_path,
            modules("Transformer", "Pooling"),
            {**LAST, "word_embedding_dimension": 48},
            architecture=architecture,
        )
    )
    assert found is not None and (found.has_head, found.size) == (has_head, 48)


GOOD = modules("Transformer", "Pooling")


@pytest.mark.parametrize(
    ("listed", "pooling", "error"),
    [
        ([*GOOD, {"type": "mine.Head", "path": "2_Head"}], LAST, SourceUnsupported),
        ([{"type": "os.system", "path": ""}, GOOD[1]], LAST, SourceUnsupported),
        (modules("Transformer", "Pooling", "Dense"), LAST, SourceUnsupported),
        (modules("Transformer", "Normalize"), LAST, SourceUnsupported),
        ([GOOD[0], {**GOOD[1], "path": "../elsewhere"}], LAST, SourceUnsupported),
        (GOOD, {"pooling_mode_weightedmean_tokens": True}, SourceUnsupported),
        (GOOD, {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True}, SourceUnsupported),
        (GOOD, {"pooling_mode": "max"}, SourceUnsupported),
        (GOOD, {}, SourceUnsupported),
        (GOOD, [], SourceCorrupt),
        ({"type": "x"}, LAST, SourceCorrupt),
        (7, LAST, SourceCorrupt),
    ],
)
def test_what_would_make_other_vectors_is_refused(
    tmp_path: Path, listed: object, pooling: object, error: type[SourceError]
) -> None:
    with pytest.raises(error):
        sentence_layout(source(tmp_path, listed, pooling))


def test_a_pooling_that_was_not_fetched_is_missed(tmp_path: Path) -> None:
    made = source(tmp_path, GOOD, LAST)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(SourceCorrupt, match="1_Pooling"):
        sentence_layout(made)
    (tmp_path / "modules.json").unlink()
    assert sentence_layout(made) is None


def test_the_pooling_is_fetched_with_its_modules_only() -> None:
    names = ["config.json", "model.safetensors", "1_Pooling/config.json"]
    assert "1_Pooling/config.json" in choose([*names, "modules.json"], None)[1]
    assert choose(names, None)[1] == ("config.json", "model.safetensors")


def test_what_is_kept_is_read_again() -> None:
    kept = Embedding(pooling=Pooling.MEAN, normalizes=True, size=48, generates=False)
    assert parse_embedding(embedding_json(kept)) == kept


@pytest.mark.parametrize(
    "change", [{"pooling": "max"}, {"size": 0}, {"size": "48"}, {"normalizes": 1}, {"generates": None}]
)
def test_what_was_not_written_by_us_is_corrupt(change: dict[str, Any]) -> None:
    kept = {"pooling": "mean", "normalizes": True, "size": 48, "generates": False, **change}
    for text in (json.dumps(kept), "[]", "{", "{}"):
        with pytest.raises(SourceCorrupt):
            parse_embedding(text.encode())


def test_shorter_vectors_have_length_one() -> None:
    vector = struct.pack("<3f", 3.0, 4.0, 12.0)
    assert figures(shorten(vector, 2)).tolist() == pytest.approx([0.6, 0.8])
    assert figures(shorten(vector, 3)).tolist() == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    nothing = struct.pack("<2f", 0.0, 0.0)
    assert shorten(nothing, 2) == nothing
    answer = json.loads(
        embeddings_json([vector], dimensions=None, in_base64=False, model="m", prompt_tokens=2)
    )
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": [3.0, 4.0, 12.0]}]
