"""`firstlight checkpoint inspect`: what a checkpoint says about itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from firstlight.cli.options import AsJson
from firstlight.cli.output import console, print_json, size, table

if TYPE_CHECKING:
    from native_loader import Manifest, TensorEntry

SHOWN_TENSORS = 20
CheckpointPath = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's folder.")]


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: firstlight checkpoint inspect ./qwen.ckpt · "
        "firstlight checkpoint inspect ./qwen.ckpt --all · "
        "firstlight checkpoint inspect ./qwen.ckpt --json | jq '.tensors[0]'"
    )(inspect)


def inspect(
    checkpoint: CheckpointPath,
    show_all: Annotated[bool, typer.Option("--all", help="Every tensor, not only the first.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a checkpoint's partitions, files, and tensors in the order a forward pass needs them.

    The manifest is held against every law of the format first; the tensors' bytes are not read.
    """
    from native_loader import open_checkpoint

    manifest = open_checkpoint(checkpoint).manifest
    if as_json:
        print_json(_record(manifest))
        return
    _print_facts(manifest)
    _print_partitions(manifest)
    _print_tensors(manifest, None if show_all else SHOWN_TENSORS)


def _record(manifest: Manifest) -> dict[str, Any]:
    return {
        "digest": manifest.digest,
        "format_version": manifest.format_version,
        "source": manifest.source,
        "revision": manifest.revision,
        "dtype": manifest.dtype,
        "transformers_version": manifest.transformers_version,
        "size_bytes": manifest.size_bytes,
        "chunk_bytes": manifest.chunk_bytes,
        "partitions": [
            {"name": entry.name, "size_bytes": entry.size_bytes, "chunks": len(entry.chunk_crc32c)}
            for entry in manifest.partitions
        ],
        "tensors": [asdict(entry) for entry in manifest.tensors],
        "aliases": dict(manifest.aliases),
        "files": [asdict(entry) for entry in manifest.files],
    }


def _print_facts(manifest: Manifest) -> None:
    facts = {
        "digest": manifest.digest,
        "source": f"{manifest.source} @ {manifest.revision}",
        "format": f"version {manifest.format_version}, mostly {manifest.dtype}",
        "size": f"{size(manifest.size_bytes)} in {len(manifest.tensors)} tensors, "
        f"{len(manifest.aliases)} further names",
        "files": ", ".join(entry.name for entry in manifest.files) or "none",
    }
    for key, value in facts.items():
        console.print(f"[bold]{key:7}[/] {escape(value)}", soft_wrap=True)


def _print_partitions(manifest: Manifest) -> None:
    shown = table("PARTITION", "SIZE", "CHUNKS", "TENSORS")
    for index, entry in enumerate(manifest.partitions):
        tensors = sum(tensor.partition == index for tensor in manifest.tensors)
        shown.add_row(entry.name, size(entry.size_bytes), str(len(entry.chunk_crc32c)), str(tensors))
    console.print()
    console.print(shown)


def _print_tensors(manifest: Manifest, limit: int | None) -> None:
    names: dict[str, list[str]] = {}
    for alias, target in manifest.aliases.items():
        names.setdefault(target, []).append(alias)
    shown = table("#", "TENSOR", "DTYPE", "SHAPE", "SIZE", "AT", "ALSO")
    for index, entry in enumerate(manifest.tensors[:limit]):
        shown.add_row(
            str(index),
            escape(entry.name),
            entry.dtype,
            "×".join(map(str, entry.shape)) or "scalar",
            size(entry.size_bytes),
            f"{entry.partition}:{entry.offset}",
            escape(_also(entry, names.get(entry.name, []))),
        )
    console.print()
    console.print(shown)
    left = len(manifest.tensors) - len(manifest.tensors[:limit])
    if left:
        console.print(f"and {left} more; [bold]--all[/] shows them")


def _also(entry: TensorEntry, aliases: list[str]) -> str:
    views = [f"view of {entry.shares}"] if entry.shares else []
    return ", ".join([*views, *aliases])
