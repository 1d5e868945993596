"""A plan of a conversion carried out in memory, on files that are whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gpu_worker.convert.stream_plan import Piece, StreamPlan
from gpu_worker.store.streaming.casting import cast_into, copy_into
from gpu_worker.store.streaming.unpacking import unpack_into


def filled(made: StreamPlan, source: Path) -> bytes:
    """Partition 0."""
    partition = memoryview(bytearray(made.manifest.size_bytes))
    files = {piece.file: memoryview((source / piece.file).read_bytes()) for piece in made.pieces}
    for piece in made.pieces:
        data = files[piece.file]
        if piece.is_packed:
            unpack_into(partial(_place, partition), [piece], data, data_start=0)
            continue
        given = data[piece.source_start : piece.source_start + piece.source_bytes]
        if piece.is_copy:
            copy_into(_place(partition, piece), given)
        else:
            cast_into(_place(partition, piece), given, piece.dtypes)
    return bytes(partition)


def _place(partition: memoryview, piece: Piece) -> memoryview:
    return partition[piece.start : piece.end]
