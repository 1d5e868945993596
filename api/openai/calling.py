"""The tools of a request: whether they may be called, must be, and how this model writes that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from api.openai.fields import ChatRequest, ChosenTool, Function, Tool
from api.openai.grammars import MOST_CALLS, calls_grammar
from api.text.model_text import ModelText
from api.text.tool_calls import ToolCalls
from api.text.tool_formats import ToolFormat
from firstlight.domain.errors import InvalidInput, UnsupportedParameter


@dataclass(frozen=True, slots=True)
class Calling:
    """`grammar` is empty where the model is free to call or not."""

    form: ToolFormat
    tools: tuple[Tool, ...]
    grammar: str
    # With a named tool, an answer ends as it would without one: that is OpenAI's way.
    is_named: bool
    # Special tokens of this notation, and how they read.
    markers: Mapping[int, str]

    def finish_reason(self, reason: str, *, calls: int) -> str:
        return "tool_calls" if calls and reason == "stop" and not self.is_named else reason

    def parser(self) -> ToolCalls:
        """A new one for each choice."""
        return ToolCalls(self.form, [tool.function.name for tool in self.tools])


def calling_of(request: ChatRequest, text: ModelText) -> Calling | None:
    """None: no tool is to be called. Raises: InvalidInput, UnsupportedParameter."""
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none", "auto"):
            raise InvalidInput("tool_choice needs tools", param="tool_choice")
        return None
    if choice == "none":
        return None
    _check_names(request.tools)
    form = _form(text)
    if request.response_format is not None and request.response_format.type != "text":
        raise UnsupportedParameter(
            "response_format is served together with tools only for tool_choice none", param="response_format"
        )
    return Calling(
        form=form,
        tools=tuple(request.tools),
        grammar=_grammar(request, form, text),
        is_named=isinstance(choice, ChosenTool),
        markers=_markers(form, text),
    )


def _markers(form: ToolFormat, text: ModelText) -> dict[int, str]:
    known = text.special_tokens
    return {known[marker]: marker for marker in form.markers if marker in known}


def _form(text: ModelText) -> ToolFormat:
    if not text.knows_tools:
        raise UnsupportedParameter(
            "this model knows no tools: its chat template has no place for them", param="tools"
        )
    if text.tool_format is None:
        raise UnsupportedParameter(
            "this model's chat template writes calls of tools in a notation that is not served", param="tools"
        )
    return text.tool_format


def _grammar(request: ChatRequest, form: ToolFormat, text: ModelText) -> str:
    if request.tool_choice in (None, "auto"):
        return ""
    may_be_many = request.parallel_tool_calls is not False and not isinstance(request.tool_choice, ChosenTool)
    return calls_grammar(
        form,
        _forced(request),
        token_of={marker: token for token, marker in _markers(form, text).items()},
        most=MOST_CALLS if may_be_many else 1,
    )


def _forced(request: ChatRequest) -> list[Function]:
    functions = [tool.function for tool in request.tools or ()]
    if not isinstance(request.tool_choice, ChosenTool):
        return functions
    name = request.tool_choice.function.name
    named = [function for function in functions if function.name == name]
    if not named:
        raise InvalidInput(f"there is no tool {name[:64]!r}", param="tool_choice")
    return named


def _check_names(tools: list[Tool]) -> None:
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidInput(f"there are two tools {name!r}", param=f"tools[{index}].function.name")
