"""The types of a GGUF file's weights that are unpacked on their way: so many bytes hold so many elements.

Knows neither torch nor gguf, so that a plan can be read without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Block(NamedTuple):
    """The smallest part that can be unpacked alone."""

    elements: int
    size_bytes: int


# Those that gguf's `dequantize` knows, under its names; the result is float32, block by block.
PACKED: Mapping[str, Block] = {
    "Q4_0": Block(32, 18),
    "Q4_1": Block(32, 20),
    "Q5_0": Block(32, 22),
    "Q5_1": Block(32, 24),
    "Q8_0": Block(32, 34),
    "Q2_K": Block(256, 84),
    "Q3_K": Block(256, 110),
    "Q4_K": Block(256, 144),
    "Q5_K": Block(256, 176),
    "Q6_K": Block(256, 210),
    "TQ1_0": Block(256, 54),
    "TQ2_0": Block(256, 66),
    "MXFP4": Block(32, 17),
    "NVFP4": Block(64, 36),
    "IQ1_M": Block(256, 56),
    "IQ1_S": Block(256, 50),
    "IQ2_S": Block(256, 82),
    "IQ2_XS": Block(256, 74),
    "IQ2_XXS": Block(256, 66),
    "IQ3_S": Block(256, 110),
    "IQ3_XXS": Block(256, 98),
    "IQ4_NL": Block(32, 18),
    "IQ4_XS": Block(256, 136),
}
