"""What a sequence of a store should hold, and what was offered as a prefix, in plain Python.

The bytes of a token's rows, and of the state behind it, are made of all tokens up to it, as those
of a model are: whatever begins alike has the same bytes, by whichever way it came to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from cacheshrink_hybrid.pool.lifetime import RowSet


@lru_cache(maxsize=1 << 16)
def row_of(digest: bytes, row_set: RowSet, row_bytes: int) -> bytes:
    """The row of the last of the tokens with this digest."""
    return hashlib.shake_128(digest + f"{row_set}".encode()).digest(row_bytes)


@dataclass
class Twin:
    """What a sequence should hold: its tokens, a digest of those up to each of them, from which
    their rows are made, and its states.

    Attributes:
        text: that its tokens mostly follow, so that sequences begin alike.
    """

    text: tuple[int, ...] = ()
    tokens: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    state: bytes = b""
    checkpoints: dict[int, bytes] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            before = self.digests[-1] if self.digests else b""
            self.tokens.append(token)
            self.digests.append(hashlib.sha256(before + bytes([token])).digest())

    def copy(self) -> Twin:
        return replace(
            self,
            tokens=list(self.tokens),
            digests=list(self.digests),
            checkpoints=dict(self.checkpoints),
        )

    def rows(self, row_set: RowSet, row_bytes: int, begin: int, end: int) -> bytes:
        return b"".join(row_of(x, row_set, row_bytes) for x in self.digests[begin:end])


class Offers:
    """Sequences that were offered as prefixes."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._ends: list[bytes] = []

    def add(self, digests: Sequence[bytes], *, checkpoint: bool) -> None:
        """One with tokens of these digests, with a state or not."""
        self._digests.update(digests)
        if checkpoint:
            self._ends.append(digests[-1])

    def matched(self, digests: Sequence[bytes]) -> int:
        """Most tokens that one of them begins with, too."""
        found = (number for number, x in enumerate(digests) if x not in self._digests)
        return next(found, len(digests))

    def last_end(self, digests: Sequence[bytes]) -> int:
        """Tokens of the longest with a state that these begin with."""
        ends = set(self._ends).intersection(digests)
        return max((number for number, x in enumerate(digests, start=1) if x in ends), default=0)


def texts(random: np.random.Generator) -> list[tuple[int, ...]]:
    """Texts that begin with the same tokens, more or fewer of them."""
    common = random.integers(0, 3, 400)
    found = []
    for shared in (0, 5, 16, 37, 37, 60, 110):
        own = random.integers(0, 3, 400 - shared)
        found.append(tuple(np.concatenate([common[:shared], own]).tolist()))
    return found
