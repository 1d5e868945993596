"""`firstlight checkpoint convert`: from published files to a checkpoint in Firstlight's own format."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, size
from firstlight.cli.progress_bar import Advance, progress_of
from firstlight.domain.errors import FirstlightError, InvalidInput, ManifestInvalid, error_type

DTYPES = ("float32", "bfloat16", "float16")
Source = Annotated[Path, typer.Argument(help="A model's folder, one safetensors file, or one GGUF file.")]
Destination = Annotated[Path, typer.Argument(help="Folder to make; the same one there already is success.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help=f"Through the model's class, to {', '.join(DTYPES)}: what `firstlight deploy` serves, and what "
        "GGUF needs. Unset: every tensor as it is stored.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: firstlight checkpoint convert ./Qwen3-0.6B ./qwen.ckpt · "
        "firstlight checkpoint convert ./tiny.gguf ./tiny.ckpt --dtype float32"
    )(convert)


def convert(source: Source, destination: Destination, dtype: Dtype = None, as_json: AsJson = False) -> None:
    """Write SOURCE as a checkpoint at DESTINATION: all of it, or nothing.

    Pickle files are refused. Small files (configuration, tokenizer) are kept.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InvalidInput(f"--dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    if source.suffix == ".gguf" and dtype is None:
        raise InvalidInput("a GGUF file is decoded while it is converted; say to what, e.g. --dtype float32")
    with progress_of("converting", is_quiet=as_json) as advance:
        if dtype is None:
            made = _as_stored(source, destination, advance)
        else:
            made = _through_the_model(source, destination, dtype, advance)
    if as_json:
        print_json({"path": str(destination), **made})
    else:
        console.print(f"{destination}: {size(made['size_bytes'])}, {made['manifest_digest']}", soft_wrap=True)


def _as_stored(source: Path, destination: Path, advance: Advance) -> dict[str, Any]:
    from native_loader import save_checkpoint

    manifest = save_checkpoint(source, destination, origin=source.resolve().name, on_progress=advance)
    return {"manifest_digest": manifest.digest, "size_bytes": manifest.size_bytes}


def _through_the_model(source: Path, destination: Path, dtype: str, advance: Advance) -> dict[str, Any]:
    """In a process of its own, as a store does it: transformers and its memory end with it."""
    # Absolute, so that no path of the user's can be taken for an option.
    places = [str(source.absolute()), str(destination.absolute())]
    command = [sys.executable, "-m", "gpu_worker.convert", *places, "--dtype", dtype]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            return _outcome(process, advance)
        except BaseException:
            process.terminate()
            raise


def _outcome(process: subprocess.Popen[str], advance: Advance) -> dict[str, Any]:
    for said in _lines(process):
        if said.get("done"):
            return {"manifest_digest": said["manifest_digest"], "size_bytes": said["size_bytes"]}
        if "error" in said:
            raise _error(said)
        if said.get("bytes_total"):
            advance(said["bytes_done"], said["bytes_total"])
    raise FirstlightError(f"the conversion ended with exit code {process.wait()} and without a word")


def _lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _error(said: dict[str, Any]) -> FirstlightError:
    kind = error_type(said["error"])
    if issubclass(kind, ManifestInvalid):
        return kind(said["message"], rule=said.get("rule", "malformed"))
    return kind(said["message"])
