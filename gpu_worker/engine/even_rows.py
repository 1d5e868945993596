"""Linear layers that give a row the same bits whoever its neighbours are, on a CPU.

Libraries of matrix products have kernels of their own for one, two or three rows, which sum in another order
than those for many. A stream's last bits would then depend on how many others run beside it, and once in ten
thousand tokens such a bit chooses another token: a stream that was moved, resumed or merely joined would
differ from one that was not. Here few rows are computed in the order of many, by `multiply_in_order`, as fast
as the library does; where that order is not known, the rows are filled up to many.

What the library does is not documented but found out: `order_of` asks it, once per width, before any request.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn
from torch.nn.functional import linear, pad

from native_loader import has_ordered_products, multiply_in_order

log = logging.getLogger("engine.even_rows")

# Rows that are asked about; above, every known kernel is the one for many.
_MOST_ROWS = 16
_KERNEL_ROWS = 3
_OUTPUTS = 256
_USUAL_BLOCKS = (192, 384, 96, 128, 160, 256, 320, 336, 448, 512)


@dataclass(frozen=True, slots=True)
class Order:
    """`many` rows and more come out alike; `block` is how fewer are to be summed, None if that is unknown."""

    many: int
    block: int | None = None


def order_of(inputs: int, dtype: torch.dtype) -> Order | None:
    """How this machine's library sums `inputs` products; None if no number of rows comes out like another.

    It parts rows among its threads, so what it said holds for as many as it had then.
    """
    return _order_of(inputs, dtype, torch.get_num_threads())


@cache
def _order_of(inputs: int, dtype: torch.dtype, threads: int) -> Order | None:
    generator = torch.Generator().manual_seed(inputs)
    rows = torch.randn(_MOST_ROWS, inputs, generator=generator).to(dtype)
    weights = torch.randn(_OUTPUTS, inputs, generator=generator).to(dtype)
    wanted = linear(rows, weights)
    alike = [torch.equal(linear(rows[:count], weights), wanted[:count]) for count in range(1, _MOST_ROWS)]
    if not alike[-1]:
        return None
    many = 1 + max((count for count, same in enumerate(alike, 1) if not same), default=0)
    if many == 1 or many > _KERNEL_ROWS + 1 or dtype != torch.float32 or not has_ordered_products():
        return Order(many)
    blocks = (block for block in _blocks(inputs) if _is_block(rows, weights, wanted, block))
    return Order(many, next(blocks, None))


def _blocks(inputs: int) -> list[int]:
    half = inputs // 2
    found = [inputs, *_USUAL_BLOCKS, half, half // 8 * 8, -(-half // 8) * 8, -(-inputs // 2)]
    return [block for block in dict.fromkeys(found) if 0 < block <= inputs]


def _is_block(rows: torch.Tensor, weights: torch.Tensor, wanted: torch.Tensor, block: int) -> bool:
    return all(
        torch.equal(_in_order(rows[:count], weights, block), wanted[:count])
        for count in range(1, _KERNEL_ROWS + 1)
    )


def make_even(model: nn.Module, device: str) -> None:
    """Every linear layer of a model on a CPU. On a GPU they are left as they are."""
    if device != "cpu":
        return
    for name, module in model.named_modules():
        if type(module) is not nn.Linear:
            continue
        order = order_of(module.in_features, module.weight.dtype)
        if order is None:
            log.warning("%s: rows of %d inputs differ with their number here", name, module.in_features)
        elif order.many > 1:
            module.forward = partial(_forward, module, order)  # type: ignore[method-assign]


def _forward(module: nn.Linear, order: Order, rows: torch.Tensor) -> torch.Tensor:
    """(…, inputs) -> (…, outputs). The bias apart, for it too would be added in one order or another."""
    weight = module.weight
    count = rows.numel() // weight.shape[1]
    if count >= order.many or count == 0:
        product = linear(rows, weight)
    elif order.block is not None and torch.get_num_threads() == 1:
        flat = rows.reshape(count, weight.shape[1]).contiguous()
        product = _in_order(flat, weight, order.block).reshape(*rows.shape[:-1], weight.shape[0])
    else:
        flat = pad(rows.reshape(count, weight.shape[1]), (0, 0, 0, order.many - count))
        product = linear(flat, weight)[:count].reshape(*rows.shape[:-1], weight.shape[0])
    return product if module.bias is None else product + module.bias


def _in_order(rows: torch.Tensor, weights: torch.Tensor, block: int) -> torch.Tensor:
    count, (outputs, inputs) = len(rows), weights.shape
    products = rows.new_empty(count, outputs)
    multiply_in_order(
        rows.data_ptr(),
        weights.data_ptr(),
        products.data_ptr(),
        count=count,
        outputs=outputs,
        inputs=inputs,
        block=block,
    )
    return products
