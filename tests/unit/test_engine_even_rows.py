"""A row's bits do not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from firstlight.domain.errors import InvalidInput
from gpu_worker.engine import even_rows
from gpu_worker.engine.even_rows import Order, make_even, order_of
from native_loader import has_ordered_products, multiply_in_order

WIDTHS = (7, 64, 100, 193, 256, 320, 576, 1536, 2048)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def layer(inputs: int, outputs: int, *, bias: bool, dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(inputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", WIDTHS)
def test_a_row_comes_out_alike_alone_and_among_others(inputs: int, dtype: torch.dtype) -> None:
    model = nn.Sequential(layer(inputs, 203, bias=inputs % 2 == 0, dtype=dtype))
    make_even(model, "cpu")
    rows = torch.randn(1, 40, inputs, generator=torch.Generator().manual_seed(2)).to(dtype)
    together = model(rows)
    for count in (1, 2, 3, 4, 5, 9):
        for begin in (0, 1, 17):
            apart = model(rows[:, begin : begin + count])
            assert torch.equal(apart, together[:, begin : begin + count]), (count, begin)


def test_rows_are_filled_up_where_the_order_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(even_rows, "order_of", lambda inputs, dtype: Order(many=4))
    model = nn.Sequential(layer(576, 100, bias=True, dtype=torch.float32))
    make_even(model, "cpu")
    rows = torch.randn(10, 576)
    assert torch.equal(model(rows[3:4]), model(rows)[3:4])


def test_values_are_those_of_the_layer() -> None:
    plain = layer(576, 100, bias=True, dtype=torch.float32)
    rows = torch.randn(2, 1, 576)
    wanted = plain(rows)
    model = nn.Sequential(plain)
    make_even(model, "cpu")
    torch.testing.assert_close(model(rows), wanted)
    assert model(rows).shape == wanted.shape


def test_the_order_is_asked_once() -> None:
    assert order_of(64, torch.float32) is order_of(64, torch.float32)


def test_other_devices_are_left_alone() -> None:
    model = nn.Sequential(layer(8, 8, bias=False, dtype=torch.float32))
    make_even(model, "cuda")
    assert "forward" not in vars(model[0])


def test_addresses_and_counts_are_checked() -> None:
    if not has_ordered_products():
        pytest.skip("needs AVX2 and FMA")
    rows = torch.ones(4, 8)
    for count, block, address in (
        (0, 8, rows.data_ptr()),
        (4, 8, rows.data_ptr()),
        (1, 0, rows.data_ptr()),
        (1, 8, 0),
    ):
        with pytest.raises(InvalidInput, match="one to three rows"):
            multiply_in_order(
                address, rows.data_ptr(), rows.data_ptr(), count=count, outputs=1, inputs=8, block=block
            )
