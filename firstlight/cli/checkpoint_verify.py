"""`firstlight checkpoint verify`: every byte against its checksum."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from firstlight.cli.checkpoint_inspect import CheckpointPath
from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, seconds, size, table
from firstlight.cli.progress_bar import progress_of

if TYPE_CHECKING:
    from native_loader import Damage

NAMED_TENSORS = 5


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: firstlight checkpoint verify ./qwen.ckpt. Exit code 1 if any byte is damaged."
    )(verify)


def verify(checkpoint: CheckpointPath, as_json: AsJson = False) -> None:
    """Read every byte of a checkpoint and hold it against its checksum.

    What is damaged is named: the file, the chunk, and the tensors with bytes in it.
    """
    from native_loader import find_damage, open_checkpoint

    began = time.monotonic()
    opened = open_checkpoint(checkpoint)
    with progress_of("verifying", is_quiet=as_json) as advance:
        # Partitions are read side by side, so damage is found in any order.
        found = find_damage(opened, on_progress=advance)
        damages = sorted(found, key=lambda damage: (damage.file, damage.offset))
    took_s = time.monotonic() - began
    if as_json:
        report = {"size_bytes": opened.size_bytes, "seconds": took_s, "damage": [asdict(d) for d in damages]}
        print_json({"path": str(checkpoint), "is_intact": not damages, **report})
    elif damages:
        _print_damage(damages)
    else:
        console.print(
            f"{escape(str(checkpoint))}: {size(opened.size_bytes)} as they were written ({seconds(took_s)})",
            soft_wrap=True,
        )
    if damages:
        raise damages[0].error(opened)


def _print_damage(damages: list[Damage]) -> None:
    shown = table("FILE", "CHUNK", "BYTES", "TENSORS")
    for damage in damages:
        more = len(damage.tensors) - NAMED_TENSORS
        named = ", ".join(damage.tensors[:NAMED_TENSORS]) + (f" and {more} more" if more > 0 else "")
        chunk = "-" if damage.chunk is None else str(damage.chunk)
        span = f"{damage.offset}–{damage.offset + damage.size_bytes}"
        shown.add_row(escape(damage.file), chunk, span, escape(named))
    console.print(shown)
