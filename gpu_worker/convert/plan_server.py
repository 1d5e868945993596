"""`python -m gpu_worker.convert --serve-plans`: answers a store that downloads and converts in one pass.

One JSON object a line, in and out; everything larger is in the folders that the questions name.
    -> {"plan": folder, "output": folder, "dtype": …, "model": …, "revision": …}
    <- {"planned": true, "seconds": …}      plan.json and the provisional manifest stand in `output`
    <- {"staged": why}                      this model has to be converted whole
    -> {"tokenizer": folder, "output": folder}
    <- {"files": [names]}                   written to `output`
    either                                  <- {"error": code, "message": …}
transformers is imported before the first question, so that the answer does not wait for it; {"ready": true,
"pid": …} says that it is.

On a GPU host it is forked from the zygote of engines, which has the same imports, for whoever connects to a
socket: `converse`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from firstlight.domain.errors import FirstlightError, InvalidInput


def serve(questions: TextIO, answers: TextIO) -> None:
    """Until the questions end."""
    from gpu_worker.convert.rehearsal import rehearse

    rehearse()
    print(json.dumps({"ready": True, "pid": os.getpid()}), file=answers, flush=True)
    for line in questions:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)


# Any: decoded JSON from the store that started this process.
def _answer(question: dict[str, Any]) -> dict[str, Any]:
    from gpu_worker.convert.planning import NotStreamable
    from gpu_worker.convert.quick_gguf import forget

    try:
        match question:
            case {"plan": str(folder), "output": str(output), **rest}:
                return _planned(Path(folder), Path(output), {key: str(value) for key, value in rest.items()})
            case {"tokenizer": str(folder), "output": str(output)}:
                return _tokenizer(Path(folder), Path(output))
        raise InvalidInput("expected a plan or a tokenizer to make")
    except NotStreamable as reason:
        forget()
        return {"staged": str(reason)}
    except FirstlightError as failure:
        forget()
        return {"error": failure.code, "message": failure.message}


def _planned(folder: Path, output: Path, about: dict[str, str]) -> dict[str, Any]:
    from gpu_worker.convert.planning import plan
    from gpu_worker.convert.stream_plan import write_plan

    began = time.monotonic()
    write_plan(plan(folder, dtype=about["dtype"], model=about["model"], revision=about["revision"]), output)
    return {"planned": True, "seconds": round(time.monotonic() - began, 3)}


def _tokenizer(folder: Path, output: Path) -> dict[str, Any]:
    from gpu_worker.convert.quick_gguf import forget
    from gpu_worker.convert.small_files import tokenizer_files
    from gpu_worker.convert.source import ModelSource

    try:
        # A folder of headers: of the configuration and safetensors, or of the one GGUF file.
        weights = next(folder.glob("*.gguf"), None) if not (folder / "config.json").exists() else None
        found = tokenizer_files(ModelSource(folder, weights.name if weights is not None else None))
    finally:
        forget()
    output.mkdir(parents=True, exist_ok=True)
    for name, content in found.items():
        (output / name).write_bytes(content)
    return {"files": sorted(found)}


def converse(asked: socket.socket) -> int:
    """Serve one connection, in a process of its own; its exit status."""
    # Whoever asked has gone, and wants no answer.
    with contextlib.suppress(ConnectionError), asked:
        # What transformers prints belongs to the log.
        sys.stdout = sys.stderr
        serve(asked.makefile("r"), asked.makefile("w"))
    return 0


def main() -> int:
    # What transformers prints belongs to the log, not among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    serve(sys.stdin, answers)
    return 0
