"""`python -m gpu_worker.convert SOURCE DESTINATION`: JSON lines on standard output, the outcome as the last.

{"phase":"convert","bytes_done":…,"bytes_total":…}
{"done":true,"manifest_digest":…,"size_bytes":…}        and exit code 0
{"error":code,"message":…}                              and exit code 1

`python -m gpu_worker.convert --serve-plans`: see `plan_server`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from firstlight.domain.errors import FirstlightError, ManifestInvalid, SourceCorrupt

# Before transformers is imported: nothing of a conversion may look for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

REPORT_EVERY_BYTES = 32 << 20


def _say(message: dict[str, object]) -> None:
    print(json.dumps(message), flush=True)


class ProgressLines:
    """Says how far it is, at most once for every `REPORT_EVERY_BYTES` and at both ends."""

    def __init__(self) -> None:
        self._said_bytes = 0

    def __call__(self, bytes_done: int, bytes_total: int) -> None:
        if bytes_done in (0, bytes_total) or bytes_done - self._said_bytes >= REPORT_EVERY_BYTES:
            self._said_bytes = bytes_done
            _say({"phase": "convert", "bytes_done": bytes_done, "bytes_total": bytes_total})


def main() -> int:
    if sys.argv[1:] == ["--serve-plans"]:
        from gpu_worker.convert import plan_server

        return plan_server.main()
    parser = argparse.ArgumentParser(prog="python -m gpu_worker.convert")
    parser.add_argument("source", type=Path, help="directory of a model, or one GGUF file")
    parser.add_argument("destination", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default="", help="recorded in the manifest as the source")
    parser.add_argument("--revision", default="")
    arguments = parser.parse_args()
    # Here, so that a wrong command line does not wait for torch.
    from gpu_worker.convert.conversion import convert
    from gpu_worker.convert.quick_gguf import use_quick_reader

    use_quick_reader()

    try:
        manifest = convert(
            arguments.source,
            arguments.destination,
            dtype=arguments.dtype,
            model=arguments.model or arguments.source.name,
            revision=arguments.revision,
            on_progress=ProgressLines(),
        )
    except ManifestInvalid as error:
        _say({"error": error.code, "message": error.message, "rule": error.rule})
        return 1
    except SourceCorrupt as error:
        _say({"error": error.code, "message": f"the source is corrupt: {error.message}"})
        return 1
    except FirstlightError as error:
        _say({"error": error.code, "message": error.message})
        return 1
    _say({"done": True, "manifest_digest": manifest.digest, "size_bytes": manifest.size_bytes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
