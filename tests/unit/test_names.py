"""Names that become paths, ids and labels."""

from __future__ import annotations

import pytest

from firstlight.domain.errors import InvalidName
from firstlight.domain.names import checkpoint_id, host_id, model_name, parse_checkpoint_id


@pytest.mark.parametrize("text", ["m", "SmolLM2-135M", "llama-3.1_8b", "a" * 96])
def test_ordinary_names_are_accepted(text: str) -> None:
    assert model_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a\0b",
        "-a",
        "a-",
        "a..b",
        "a b",
        "ä",
        "a" * 97,
        "a\n",
    ],
)
def test_anything_that_could_be_a_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        model_name(text)


def test_a_checkpoint_id_round_trips() -> None:
    made = checkpoint_id(model_name("llama-3.1"), "0123abcd")
    assert parse_checkpoint_id(made) == ("llama-3.1", "0123abcd")


@pytest.mark.parametrize("text", ["model", "model@", "@abcd", "a/b@abcd", "m@../..", "m@ab@cd"])
def test_a_malformed_checkpoint_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_checkpoint_id(text)


@pytest.mark.parametrize("text", ["Host", "host_a", "-a", "", "a" * 64])
def test_a_host_id_is_a_dns_label(text: str) -> None:
    with pytest.raises(InvalidName):
        host_id(text)
