"""load(save(x)) == x: bits, shapes, strides, types, shared storage and tied names."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from native_loader import CheckpointWriter, load_state_dict, open_checkpoint, save_checkpoint, verify
from native_loader.dtypes import BITS, dtype_name

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex32,
    torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
]  # fmt: skip
State = dict[str, torch.Tensor]


def storage_of(element_count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Elements of random bits, NaNs and infinities included; of bool only 0 and 1 have a meaning."""
    generator = torch.Generator().manual_seed(seed)
    top = 2 if dtype == torch.bool else 256
    item_bytes = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, top, (element_count * item_bytes,), dtype=torch.uint8, generator=generator)
    return torch.empty(0, dtype=dtype).set_(raw.untyped_storage(), 0, (element_count,), (1,))


def view_of(base: torch.Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(0, dtype=base.dtype).set_(base.untyped_storage(), offset, shape, stride)


@st.composite
def views(draw: st.DrawFn, base: torch.Tensor) -> torch.Tensor:
    """Any strided view that fits the base: slices, transposes, broadcasts, gaps, scalars, empties."""
    if base.dtype == torch.float4_e2m1fn_x2:
        return base  # packed types are contiguous
    offset = draw(st.integers(0, base.numel() - 1))
    room = base.numel() - 1 - offset
    shape, stride = [], []
    for _ in range(draw(st.integers(0, 3))):
        size, step = draw(st.integers(0, 5)), draw(st.integers(0, 7))
        if size > 0 and (size - 1) * step > room:
            size, step = 1, 1
        room -= max(size - 1, 0) * step
        shape.append(size)
        stride.append(step)
    return view_of(base, offset, tuple(shape), tuple(stride))


@st.composite
def states(draw: st.DrawFn) -> State:
    state: State = {}
    for index in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from(DTYPES))
        base = storage_of(draw(st.integers(1, 80)), dtype, draw(st.integers(0, 2**31)))
        for part in range(draw(st.integers(1, 3))):
            state[f"t{index}.{part}"] = draw(views(base))
        if draw(st.booleans()):
            state[f"t{index}.tied"] = state[f"t{index}.0"]
    return state


def bits(tensor: torch.Tensor) -> bytes:
    """The elements' bytes in logical order, without a conversion that could quieten a NaN."""
    item = tensor.element_size()
    raw = torch.empty(0, dtype=torch.uint8)
    shape, stride = (*tensor.shape, item), (*(step * item for step in tensor.stride()), 1)
    raw.set_(tensor.untyped_storage(), tensor.storage_offset() * item, shape, stride)
    return raw.contiguous().numpy().tobytes()


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert bits(found) == bits(expected)


@given(state=states())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_saved_is_loaded(state: State) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "checkpoint"
        manifest = save_checkpoint(state, path)
        verify(path)
        loaded = load_state_dict(path)
        assert set(loaded) == set(state) == set(open_checkpoint(path).tensors)
        for name, tensor in state.items():
            assert_same(loaded[name], tensor)
        for alias, target in manifest.aliases.items():
            assert loaded[alias] is loaded[target]


@given(state=states(), seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_memory_shared_before_is_shared_after(state: State, seed: int) -> None:
    """Writing through one view shows through the others exactly as it does in the original."""
    written = [t for t in state.values() if t.numel() and t.dtype != torch.float4_e2m1fn_x2]
    if not written:
        return
    with tempfile.TemporaryDirectory() as directory:
        save_checkpoint(state, Path(directory) / "checkpoint")
        loaded = load_state_dict(Path(directory) / "checkpoint")
    name = sorted(n for n, t in state.items() if any(t is w for w in written))[seed % len(written) - 1]
    for side in (state, loaded):
        flat = side[name]
        flat.view(torch.uint8).fill_(1) if flat.ndim and flat.stride(-1) == 1 else flat.zero_()
    for other in state:
        assert_same(loaded[other], state[other])


@given(state=states())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_same_bytes_make_the_same_checkpoint(state: State) -> None:
    with tempfile.TemporaryDirectory() as directory:
        first = save_checkpoint(state, Path(directory) / "first")
        assert save_checkpoint(state, Path(directory) / "second") == first
        assert save_checkpoint(state, Path(directory) / "first") == first


def test_every_type_torch_and_the_format_know_is_tried() -> None:
    """But the 6-bit ones, which torch lacks."""
    assert {dtype_name(dtype) for dtype in DTYPES} == set(BITS) - {"F6_E2M3", "F6_E3M2"}


@given(state=states(), count=st.integers(1, 4), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_tensors_of_several_partitions_are_loaded(state: State, count: int, seed: int) -> None:
    """Whichever partition each was put into, an empty one included."""
    place = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "checkpoint"
        with CheckpointWriter(
            path, source="test", revision="0", partition_count=count, chunk_bytes=4096
        ) as writer:
            for name, tensor in state.items():
                writer.add_tensor(name, tensor, partition=place.randrange(count))
            writer.commit()
        verify(path)
        loaded = load_state_dict(path)
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert_same(loaded[name], tensor)


FLOATS = [
    (torch.float32, torch.int32, [0x7F800001, 0x7FC00000, -0x3FFFFF, -0x80000000, 1, 0x7F800000]),
    (torch.float64, torch.int64, [0x7FF0000000000001, -0x8000000000000000, 1]),
    (torch.float16, torch.int16, [0x7C01, 0x7E00, -0x8000, 1, -0x3FF]),
    (torch.bfloat16, torch.int16, [0x7F81, 0x7FC0, -0x8000, 1, -0x7F]),
]


@pytest.mark.parametrize(("dtype", "bits_of", "patterns"), FLOATS, ids=lambda item: str(item)[:16])
def test_payloads_of_nans_and_signs_of_zeros_stay(
    tmp_path: Path, dtype: torch.dtype, bits_of: torch.dtype, patterns: list[int]
) -> None:
    """A signalling NaN stays one, -0.0 stays negative, and denormals are not flushed."""
    stored = torch.tensor(patterns, dtype=bits_of)
    save_checkpoint({"x": stored.view(dtype)}, tmp_path / "c")
    assert load_state_dict(tmp_path / "c")["x"].view(bits_of).tolist() == patterns


def test_a_conjugate_is_stored_as_its_value(tmp_path: Path) -> None:
    """Torch keeps a conjugate, and its imaginary part, as a view with a mark; a file has no such marks."""
    base = torch.tensor([1 + 2j, 3 - 4j])
    save_checkpoint({"conj": base.conj(), "negative": base.conj().imag}, tmp_path / "c")
    loaded = load_state_dict(tmp_path / "c")
    assert loaded["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert loaded["negative"].tolist() == [-2, 4]


def test_broadcast_of_one_element_is_stored_as_one(tmp_path: Path) -> None:
    wide = torch.tensor([3.5]).expand(10**12)
    manifest = save_checkpoint({"wide": wide}, tmp_path / "c")
    assert manifest.size_bytes == 4096
    loaded = load_state_dict(tmp_path / "c")["wide"]
    assert loaded.shape == wide.shape and loaded.stride() == (0,) and loaded[10**11] == 3.5


def test_ten_thousand_tensors_keep_names_order_and_bits(tmp_path: Path) -> None:
    """Tensors of 0 to 3 dimensions, some tied, some views of another."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(64, 64, generator=generator)
    state: State = {}
    for index in range(10_000):
        name = f"model.layers.{index}.weight"
        if index % 100 == 1:
            state[name] = state[f"model.layers.{index - 1}.weight"]
        elif index % 100 == 2:
            state[name] = base[index % 64, : index % 60]
        else:
            state[name] = torch.randn(((), (3,), (2, 0), (1, 2, 3))[index % 4], generator=generator)
    manifest = save_checkpoint(state, tmp_path / "c")
    loaded = load_state_dict(tmp_path / "c")
    assert len(manifest.tensors) + len(manifest.aliases) == len(loaded) == 10_000
    first_of_each_storage = [entry.name for entry in manifest.tensors if entry.shares is None]
    assert first_of_each_storage == [name for name in state if name in set(first_of_each_storage)]
    for name, tensor in state.items():
        assert_same(loaded[name], tensor)
    assert loaded["model.layers.1.weight"] is loaded["model.layers.0.weight"]
