"""A converter that copies: SOURCE DEST --dtype D. What it does is told by files beside the weights."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def say(**message: object) -> None:
    print(json.dumps(message), flush=True)


def main() -> None:
    source, destination = Path(sys.argv[1]), Path(sys.argv[2])
    data = (source / "model.safetensors").read_bytes()
    if (source / "generation_config.json").exists():
        say(error="source_unsupported", message="architecture Foo is not served")
        sys.exit(1)
    say(phase="convert", bytes_done=0, bytes_total=len(data))
    destination.mkdir(parents=True)
    (destination / "partition-0.bin").write_bytes(data)
    if (source / "chat_template.jinja").exists():
        time.sleep(60)  # a converter that is slow: tests end it
    digest = f"digest-of-{len(data)}"
    (destination / "manifest.json").write_text(json.dumps({"digest": digest}))
    say(done=True, manifest_digest=digest, size_bytes=len(data))


main()
