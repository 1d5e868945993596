"""The C++ core under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.sanitized_build import core_is_clean


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_and_behaviour_are_clean(tmp_path: Path) -> None:
    core_is_clean("address,undefined", tmp_path)
