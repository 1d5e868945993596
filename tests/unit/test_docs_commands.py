"""Commands and settings that the documentation names are the ones there are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from docs_pages import ROOT, Block, blocks, inline_code, pages
from typer.core import TyperCommand, TyperGroup

from firstlight.cli.main import app
from firstlight.settings import Settings

PAGES = pages()
ROOT_COMMAND = typer.main.get_command(app)
# Of which BadParameter is one kind: also a missing argument, an unknown option, an option without its value.
USAGE_ERROR = typer.BadParameter.__mro__[1]
_SHELL = frozenset({"", "sh", "bash", "shell", "console"})
_SEPARATORS = frozenset({"|", "||", "&", "&&", ";", ">", "<", ">>"})
_ASSIGNMENT = re.compile(r"\w+=.*", re.DOTALL)
# What an example leaves to the reader.
_LEFT_OUT = frozenset({"…", "..."})


def test_commands_in_blocks_parse() -> None:
    wrong, found = [], 0
    for path in PAGES:
        for block in blocks(path):
            for arguments in _commands(block):
                found += 1
                if (error := _parsed(arguments)) is not None:
                    wrong.append(f"{block.place}: firstlight {' '.join(arguments)}: {error}")
    assert wrong == []
    assert found > 30


def test_commands_in_sentences_exist() -> None:
    wrong, found = [], 0
    for path in PAGES:
        for line, code in inline_code(path):
            if re.match(r"firstlight( |$)", code):
                found += 1
                if (error := _known(code.replace("[", "").replace("]", "").split()[1:])) is not None:
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: {code}: {error}")
    assert wrong == []
    assert found > 30


@pytest.mark.parametrize(
    "arguments",
    ["no-such-command", "deploy qwen", "workflows replay --form-failure", "explain qwen --host"],
)
def test_a_command_that_does_not_parse_is_found(arguments: str) -> None:
    assert _parsed(arguments.split()) is not None


def test_examples_of_the_help_texts_parse() -> None:
    wrong, found = [], 0
    for name, command in _leaves(ROOT_COMMAND):
        kind, _, examples = (command.epilog or "").partition(": ")
        if kind not in ("Example", "Examples"):
            continue
        for example in examples.split(" · "):
            # A sentence may follow.
            for arguments in _commands(Block(ROOT, "", 0, example.partition(". ")[0])):
                found += 1
                if (error := _parsed(arguments)) is not None:
                    wrong.append(f"{name} --help: {example}: {error}")
    assert wrong == []
    assert found > 30


def test_every_command_is_in_the_documentation() -> None:
    text = " ".join(" ".join(path.read_text().split()) for path in PAGES)
    missing = [name for name, _ in _leaves(ROOT_COMMAND) if not re.search(rf"firstlight {name}\b", text)]
    assert missing == []


def test_modules_that_are_run_exist() -> None:
    wrong = []
    for path in PAGES:
        for name in re.findall(r"python3? -m ([\w.]+)", path.read_text()):
            file = ROOT / Path(*name.split("."))
            is_ours = (ROOT / name.partition(".")[0]).is_dir()
            if is_ours and not (file.with_suffix(".py").exists() or (file / "__main__.py").exists()):
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_settings_that_are_named_exist() -> None:
    there = {f"FIRSTLIGHT_{name.upper()}" for name in Settings.model_fields}
    # Tests, benchmarks, the command line and the files of a deployment read a few of their own.
    sources = [path for path in ROOT.glob("*/**/*.py") if not path.parts[len(ROOT.parts)].startswith(".")]
    sources += [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    there |= {name for path in sources for name in re.findall(r"FIRSTLIGHT_[A-Z0-9_]+", path.read_text())}
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in PAGES
        for name in sorted(set(re.findall(r"FIRSTLIGHT_[A-Z0-9_]*", path.read_text())))
        if name not in there and not (name.endswith("_") and any(one.startswith(name) for one in there))
    ]
    assert wrong == []


def _leaves(command: TyperCommand | TyperGroup, name: str = "") -> Iterator[tuple[str, TyperCommand]]:
    """Every command that is no group, with its name behind `firstlight`."""
    if not isinstance(command, TyperGroup):
        yield name, command
        return
    for part, inner in command.commands.items():
        yield from _leaves(inner, f"{name} {part}".strip())


def _commands(block: Block) -> Iterator[list[str]]:
    """Arguments of every `firstlight` in a block of shell, its own name and what follows a pipe left out."""
    if block.language not in _SHELL:
        return
    for line in block.code.replace("\\\n", " ").splitlines():
        words = _words(line.strip().removeprefix("$ "))
        while words:
            end = next((index for index, word in enumerate(words) if word in _SEPARATORS), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and _ASSIGNMENT.fullmatch(command[0]):
                del command[0]
            if command and command[0].rpartition("/")[2] == "firstlight":
                yield [word for word in command[1:] if word not in _LEFT_OUT]


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        # Not a line of shell by itself: part of a quoted text, or of an output.
        return []


def _parsed(arguments: list[str]) -> str | None:
    """Why these arguments would be refused before anything is done; None if they would not."""
    command, rest = _walk(arguments)
    if rest and {"--help", "-h"} & set(rest):
        return None
    if isinstance(command, TyperGroup):
        return f"{rest[0]} is no command" if rest else None
    try:
        command.make_context(str(command.name), rest)
    except USAGE_ERROR as error:
        return error.format_message()
    return None


def _known(words: list[str]) -> str | None:
    """As `_parsed`, where one is only spoken of: arguments may be missing, choices stand as a|b."""
    command, rest = _walk(words)
    if isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        unknown = [word for word in rest[0].split("|") if word not in (*command.commands, *_LEFT_OUT)]
        return f"{', '.join(unknown)}: no such command" if unknown else None
    there = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    named = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
    wrong = [word for words in named for word in words.split("|") if word not in there]
    return f"{', '.join(wrong)}: no such option" if wrong else None


def _walk(words: list[str]) -> tuple[TyperCommand | TyperGroup, list[str]]:
    command: TyperCommand | TyperGroup = ROOT_COMMAND
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words
