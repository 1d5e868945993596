"""Calls of tools in an answer's text: found whole, however the text comes; all else stays text."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.text.tool_calls import CallPiece, ToolCalls
from api.text.tool_formats import HERMES, LLAMA, MISTRAL, ToolFormat

NAMES = ("look_up", "add")
FORMS = (HERMES, MISTRAL, LLAMA)

leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
arguments = st.dictionaries(st.text(max_size=6), values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
cuts = st.lists(st.integers(0, 400), max_size=12)


def parted(form: ToolFormat, text: str, at: list[int]) -> tuple[str, dict[int, list[CallPiece]]]:
    parser, said, found = ToolCalls(form, NAMES), "", dict[int, list[CallPiece]]()
    edges = sorted({0, len(text), *(cut for cut in at if cut < len(text))})
    for start, end in itertools.pairwise(edges):
        fresh, pieces = parser.feed(text[start:end])
        said += fresh
        for piece in pieces:
            found.setdefault(piece.index, []).append(piece)
    return said + parser.finish(), found


def written(form: ToolFormat, wanted: list[tuple[str, dict[str, object]]], *, indent: int | None) -> str:
    objects = [
        json.dumps({"name": name, form.arguments_key: values}, ensure_ascii=False, indent=indent)
        for name, values in wanted
    ]
    if form is HERMES:
        return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects)
    if form is MISTRAL:
        return f"[TOOL_CALLS] [{', '.join(objects)}]"
    return "; ".join(objects)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMS), calls, cuts, st.sampled_from([None, 2]))
def test_calls_come_out_as_they_were_written(
    form: ToolFormat, wanted: list[tuple[str, dict[str, object]]], at: list[int], indent: int | None
) -> None:
    said, found = parted(form, written(form, wanted, indent=indent), at)
    assert said == ""
    assert sorted(found) == list(range(len(wanted)))
    for index, (name, values) in enumerate(wanted):
        first, *rest = found[index]
        assert (first.name, bool(first.call_id)) == (name, True)
        assert all(piece.name is None and piece.call_id is None for piece in rest)
        assert json.loads(first.arguments + "".join(piece.arguments for piece in rest)) == values


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMS), st.text(alphabet='ab{}[]":,\\ \n<>tol_ca/T', max_size=60), cuts)
def test_text_without_a_call_is_left_as_it_is(form: ToolFormat, text: str, at: list[int]) -> None:
    said, found = parted(form, text, at)
    assert (said, found) == (text, {})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_what_is_said_before_a_call_is_kept_apart(form: ToolFormat) -> None:
    call = written(form, [("add", {"a": 1})], indent=None)
    text = call if form is LLAMA else f"I will add.\n\n{call}\n"
    for step in range(1, len(text)):
        said, found = parted(form, text, list(range(0, len(text), step)))
        assert said == ("" if form is LLAMA else "I will add.")
        assert len(found) == 1


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "made_up", "arguments": {}}\n</tool_call>',
        "<tool_call> is a tag",
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"arguments": {"a": 1',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        "<tool_call>",
        "a < b <tool",
    ],
)
def test_what_only_looks_like_a_call_is_text(text: str) -> None:
    for step in (1, 3, 100):
        assert parted(HERMES, text, list(range(0, len(text), step))) == (text, {})


def test_arguments_before_the_name_wait_for_it_and_a_call_without_any_has_none() -> None:
    text = (
        '<tool_call>{"arguments": {"a": [1, "}"]}, "name": "add"}</tool_call>'
        '<tool_call>{"name":"add"}</tool_call>'
    )
    said, found = parted(HERMES, text, list(range(len(text))))
    assert said == ""
    assert ["".join(piece.arguments for piece in found[index]) for index in (0, 1)] == [
        '{"a": [1, "}"]}',
        "{}",
    ]


def test_a_call_that_is_cut_short_keeps_what_came() -> None:
    said, found = parted(HERMES, '<tool_call>{"name": "add", "arguments": {"a": 1', [20, 40])
    assert said == "" and "".join(piece.arguments for piece in found[0]) == '{"a": 1'
