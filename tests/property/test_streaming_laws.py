"""Laws of a streamed download's pure parts: casts are torch's, and every byte is asked for once, in order."""

from __future__ import annotations

from itertools import pairwise
from types import MappingProxyType

import gguf
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.convert.packed_types import PACKED
from gpu_worker.convert.stream_plan import Piece, StreamPlan, check_plan
from gpu_worker.store.streaming.casting import cast_into
from gpu_worker.store.streaming.chunk_book import ChunkBook
from gpu_worker.store.streaming.pace import LARGEST_BYTES, SMALLEST_BYTES, Pace
from gpu_worker.store.streaming.request_queue import WINDOW_BYTES, Request, RequestQueue
from gpu_worker.store.streaming.unpacking import unpack_into
from native_loader.manifest import Manifest, PartitionEntry

TORCH = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CHUNK = 8192
DTYPES = ((), ("BF16", "F32"), ("Q4_K", "F32"))


def _is_torchs(bits: torch.Tensor, kind: str, wanted: str) -> None:
    source = bits.view(TORCH[kind])
    expected = source.to(TORCH[wanted])
    made = bytearray(expected.nbytes)
    cast_into(memoryview(made), memoryview(bits.numpy()).cast("B"), (kind, wanted))
    whole = torch.int16 if wanted != "F32" else torch.int32
    found = torch.frombuffer(made, dtype=whole)
    # NaN stays NaN; its payload is nobody's business.
    is_nan = expected.isnan()
    assert torch.equal(found[~is_nan], expected.view(whole)[~is_nan])
    assert bool(torch.frombuffer(made, dtype=TORCH[wanted])[is_nan].isnan().all())


def test_every_value_of_two_bytes_is_cast_as_torch_does() -> None:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for kind, wanted in (("BF16", "F32"), ("F16", "F32"), ("BF16", "F16"), ("F16", "BF16")):
        _is_torchs(bits, kind, wanted)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_float32_is_rounded_as_torch_does(seed: int) -> None:
    random = np.random.default_rng(seed).integers(0, 2**32, 100_000, dtype=np.uint32)
    # Halfway between two neighbours, where rounding is decided.
    random[::3] = (random[::3] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    for wanted in ("BF16", "F16"):
        _is_torchs(torch.from_numpy(random.view(np.int32)), "F32", wanted)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_float64_is_rounded_as_torch_does(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(50_000) * 2.0 ** generator.integers(-160, 160, 50_000)
    bits = values.view(np.uint64)
    # Near a half of the narrow types' last place, where rounding twice is not rounding once.
    bits[::3] = (bits[::3] & np.uint64(0xFFFFF00000000000)) | np.uint64(0x0000100000000001)
    bits[1::3] = (bits[1::3] & np.uint64(0xFFFFFC0000000000)) | np.uint64(0x0000020000000001)
    for wanted in ("F32", "BF16", "F16"):
        _is_torchs(torch.from_numpy(bits.view(np.int64)), "F64", wanted)


@given(st.sampled_from(sorted(PACKED)), st.integers(0, 2**32 - 1), st.data())
@settings(max_examples=150, deadline=None)
def test_parts_of_packed_weights_are_unpacked_as_the_whole(kind: str, seed: int, data: st.DataObject) -> None:
    block = PACKED[kind]
    blocks = data.draw(st.integers(1, 12))
    packed = np.random.default_rng(seed).integers(0, 256, blocks * block.size_bytes, dtype=np.uint8)
    with np.errstate(all="ignore"):
        whole = gguf.dequantize(packed.reshape(1, -1), gguf.GGMLQuantizationType[kind]).reshape(-1)
    elements = blocks * block.elements
    piece = Piece(0, 512, elements * 4, "m", 64, len(packed), (kind, "F32"))
    cuts = sorted(data.draw(st.sets(st.integers(1, elements - 1), max_size=5)))
    parts = [piece.cut(512 + low * 4, 512 + high * 4) for low, high in pairwise([0, *cuts, elements])]
    made = bytearray(elements * 4)
    unpack_into(
        lambda part: memoryview(made)[part.start - 512 : part.end - 512],
        parts,
        memoryview(packed),
        data_start=64,
    )
    assert made == whole.tobytes()


@st.composite
def plans(draw: st.DrawFn) -> StreamPlan:
    """Pieces of a few files in any order of the source, copied or widened, with gaps between some."""
    start, pieces = 0, []
    offsets = {"a": 0, "b": 0}
    sizes = draw(st.lists(st.integers(1, 5000), min_size=1, max_size=12))
    for size in sizes:
        file = draw(st.sampled_from(["a", "b"]))
        dtypes = draw(st.sampled_from(DTYPES))
        size_bytes = size * 4
        source_bytes = size * 2 if "BF16" in dtypes else size_bytes
        if "Q4_K" in dtypes:
            size_bytes, source_bytes = size // 256 * 1024 + 1024, (size // 256 + 1) * 144
        pieces.append(Piece(0, start, size_bytes, file, offsets[file], source_bytes, dtypes))
        offsets[file] += source_bytes
        start = -(-(start + size_bytes) // 256) * 256
    total = -(-start // 4096) * 4096
    partition = PartitionEntry("partition-0.bin", total, (0,) * -(-total // CHUNK))
    manifest = Manifest(
        format_version=1,
        source="m",
        revision="r",
        dtype="F32",
        transformers_version=None,
        chunk_bytes=CHUNK,
        partitions=(partition,),
        tensors=(),
        aliases=MappingProxyType({}),
        files=(),
        digest="",
    )
    made = StreamPlan(manifest, tuple(pieces))
    check_plan(made, file_sizes=offsets)
    return made


def _all_of(queue: RequestQueue, sizes: list[int]) -> list[Request]:
    found = []
    while (request := queue.take(sizes[len(found) % len(sizes)])) is not None:
        found.append(request)
    return found


@given(
    plans(),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=5),
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 20_000).map(lambda at: at * 4)), max_size=4
    ),
)
@settings(max_examples=200, deadline=None)
def test_every_byte_is_asked_for_once_and_windows_in_order(
    made: StreamPlan, sizes: list[int], seams: list[tuple[str, int]]
) -> None:
    book = ChunkBook(made)
    requests = _all_of(RequestQueue(book.entries, seams=seams), sizes)
    covered: list[tuple[int, int]] = []
    window = chunk = 0
    for request in requests:
        at = request.start
        for part in request.parts:
            assert part.piece.source_start == at, "a request reads one run of a file"
            at += part.piece.source_bytes
            covered.append((part.piece.start, part.piece.end))
            assert book.entries[part.chunk].chunk.start <= part.piece.start
            assert part.piece.end <= book.entries[part.chunk].end
            assert part.piece.start // WINDOW_BYTES >= window
            window = max(window, part.piece.start // WINDOW_BYTES)
            assert part.chunk >= chunk
            chunk = part.chunk
            book.arrived(part.chunk, part.piece.size_bytes)
        assert at == request.start + request.size_bytes
        # Who reads ahead, and makes seams, does not do so in files of packed weights.
        if not any(part.piece.is_packed for part in request.parts):
            assert not any(file == request.file and request.start < seam < at for file, seam in seams)
    covered.sort()
    assert all(before[1] <= after[0] for before, after in pairwise(covered))
    assert sum(end - start for start, end in covered) == sum(piece.size_bytes for piece in made.pieces)
    assert all(entry.missing_bytes == 0 for entry in book.entries)


@given(plans())
def test_gaps_and_pieces_are_the_whole_of_a_chunk(made: StreamPlan) -> None:
    for entry in ChunkBook(made).entries:
        gaps = sum(end - start for start, end in entry.gaps())
        assert gaps + sum(piece.size_bytes for piece in entry.pieces) == entry.chunk.length


def test_requests_grow_with_the_link_and_stay_within_bounds() -> None:
    now = 0.0
    pace = Pace(parallelism=4, latency_s=0.03, clock=lambda: now)
    seen = []
    for bytes_per_s in (1e6, 1e8, 1e9, 1e11):
        for _ in range(200):
            now += 0.01
            pace.note(int(bytes_per_s * 0.01))
        seen.append(pace.request_bytes)
    assert seen == sorted(seen) and len(set(seen)) > 2
    assert min(seen) >= SMALLEST_BYTES and max(seen) == LARGEST_BYTES
