"""What a request may generate: a grammar, followed token by token.

A constraint holds nothing that cannot be had again: its state follows from the grammar and the tokens so far.
A stream that is resumed or moved builds it anew, and is held to the same tokens as if nothing had happened.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer

from firstlight.domain.errors import InvalidInput

_FILE = "tokenizer.json"


class Constraint:
    """One request's. `accept` every token that is emitted, in order; end tokens are not."""

    def __init__(
        self, matcher: LLMatcher, *, size: int, never: Collection[int], ends: Collection[int]
    ) -> None:
        self._matcher = matcher
        self._size = size
        self._never = torch.tensor(sorted(never), dtype=torch.int64)
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64)

    @property
    def is_complete(self) -> bool:
        """Nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> torch.Tensor:
        """(vocabulary,) bool: what may come next. Raises: InvalidInput for a grammar too hard to follow."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = torch.from_numpy(np.unpackbits(packed, count=self._size, bitorder="little")).bool()
        # The library has its own idea of which tokens end a text; these are the request's.
        mask[self._never] = False
        if self._matcher.is_accepting():
            mask[self._ends] = True
        if not bool(mask.any()):
            raise InvalidInput("the grammar can go on with no token of this model's")
        return mask

    def accept(self, token_ids: Sequence[int]) -> None:
        """Raises: InvalidInput for tokens that the grammar does not allow."""
        self._matcher.consume_tokens(list(token_ids))
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidInput(f"the grammar cannot be followed: {self._matcher.get_error()[:300]}")


class Grammars:
    """The model's vocabulary as grammars need it; built from its tokenizer at the first one. Thread-safe."""

    def __init__(self, directory: Path, *, vocabulary_size: int, eos_token_ids: Iterable[int]) -> None:
        self._directory = directory
        self._size = vocabulary_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._building = threading.Lock()
        # Opened now, read when it is needed: the folder of a checkpoint may be moved or go meanwhile.
        self._descriptor = _open(directory / _FILE)
        if self._descriptor is not None:
            weakref.finalize(self, os.close, self._descriptor)

    def constraint(
        self,
        grammar: str,
        *,
        generated: Sequence[int] = (),
        stop_token_ids: Iterable[int] = (),
        ignore_eos: bool = False,
    ) -> Constraint:
        """One that stands behind `generated`. Takes milliseconds; the first, some hundred.

        Raises: InvalidInput for a grammar that does not hold, or that `generated` does not fit.
        """
        tokenizer = self._built()
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        ends = {token for token in stop_token_ids if 0 <= token < self._size}
        if not ignore_eos:
            ends |= self._eos_token_ids
        # An end token inside a text that is not complete would end it all the same.
        never = {*ends, *self._eos_token_ids, *tokenizer.eos_tokens}
        constraint = Constraint(
            matcher, size=self._size, never=[token for token in never if token < self._size], ends=ends
        )
        constraint.accept(generated)
        return constraint

    def _built(self) -> LLTokenizer:
        with self._building:
            if self._tokenizer is None:
                self._tokenizer = self._build()
            return self._tokenizer

    def _build(self) -> LLTokenizer:
        try:
            return LLTokenizer(
                self._read(), n_vocab=self._size, eos_token=sorted(self._eos_token_ids) or None
            )
        except (OSError, ValueError) as failure:
            raise InvalidInput(f"this model's tokenizer cannot follow a grammar: {failure}") from failure

    def _read(self) -> str:
        if self._descriptor is None:
            return _found_later(self._directory).read_text("utf-8")
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0).decode("utf-8")


def _found_later(directory: Path) -> Path:
    """Of a checkpoint bound while it came from its source: small files come behind the first layer.

    They are offered in a folder of their own, and lie beside the weights once those are on SSD.
    """
    on_ssd = directory.parent.parent / "checkpoints" / directory.name
    for folder in (directory, directory / "small", on_ssd):
        if (folder / _FILE).is_file():
            return folder / _FILE
    raise FileNotFoundError(f"{_FILE} of {directory.name} is not there")


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
