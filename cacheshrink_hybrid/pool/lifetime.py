"""How long rows live: those of all tokens, of a window of them, or of the first ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

WHOLE_STEP = 64
"""Recent rows of steps of up to so many tokens are stored whole, so that all can be taken back."""
RECENT_HISTORY = 128
"""Recent rows that are kept for rollbacks, where any are, however many others are: as many as the
candidates of a step of assisted decoding, whose first step reads the whole prompt with them."""

TOKENS = "tokens"
RECENT = "recent"
FIRST = "first"
KINDS = (TOKENS, RECENT, FIRST)
"""Rows that a layer may have: `tokens`, what it reads of every token, or of those in its sliding
window; beside them `recent`, of the last tokens, and `first`, of the first ones."""


class RowSet(NamedTuple):
    """Rows of one kind of one layer."""

    layer_idx: int
    kind: str = TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRows:
    """What one layer stores per token.

    Attributes:
        layer_idx: cache layer.
        row_bytes: bytes of one token's row.
        window: tokens that a query reads, itself included; None for all.
        kind: one of `KINDS`.
        limit: the first so many tokens have rows, no others; None for all.
    """

    layer_idx: int
    row_bytes: int
    window: int | None = None
    kind: str = TOKENS
    limit: int | None = None

    @property
    def row_set(self) -> RowSet:
        return RowSet(self.layer_idx, self.kind)

    @property
    def lifetime(self) -> tuple[int, int, int]:
        """Equal for rows that live equally long; the order of classes in a layout."""
        return KINDS.index(self.kind), self.window or 0, self.limit or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeClass:
    """Layers whose tokens live equally long, and where their rows lie in a frame.

    Attributes:
        window: tokens that a query reads, itself included; None for all.
        kind: of the rows, one of `KINDS`.
        limit: the first so many tokens have rows, counted from the origin of a sequence (see
            `CachedSequence`); None for all.
        tokens_per_frame: T.
        layer_ids, row_bytes, offsets: per layer, in layer order; offsets are multiples of 16.
    """

    window: int | None
    kind: str = TOKENS
    limit: int | None = None
    tokens_per_frame: int
    layer_ids: tuple[int, ...]
    row_bytes: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def bytes_per_token(self) -> int:
        return sum(self.row_bytes)

    @property
    def name(self) -> str:
        """Of its frames in statistics."""
        if self.kind != TOKENS:
            return self.kind
        return "kv" if self.window is None else f"window {self.window}"

    def first_needed(self, num_tokens: int, history: int = 0) -> int:
        """Position of the first token that the token after `num_tokens` - 1 tokens sees, with
        `history` more tokens kept for rollbacks."""
        if self.window is None:
            return 0
        if self.kind == RECENT:
            history = min(history, RECENT_HISTORY)
        return max(0, num_tokens - self.window - history)

    def first_stored(self, num_tokens: int, count: int, history: int = 0) -> int:
        """Position of the first of `count` tokens behind `num_tokens` whose row is stored.

        Nobody reads in a pool what a first step stores before the next one, nor recent rows of a
        step of many tokens: of these, what the next step sees is stored.
        """
        if self.window is None:
            return num_tokens
        recent = self.kind == RECENT
        if count <= (WHOLE_STEP if recent else self.window) or (num_tokens and not recent):
            return num_tokens
        return max(num_tokens, self.first_needed(num_tokens + count + 1, history))

    def num_rows(self, num_tokens: int, origin: int = 0) -> int:
        """Tokens of `num_tokens` that have or had a row."""
        return num_tokens if self.limit is None else min(max(0, num_tokens - origin), self.limit)

    def frame_start(self, position: int) -> int:
        """First row of the frame that has the row of the token at `position`."""
        return self.num_rows(position) // self.tokens_per_frame * self.tokens_per_frame

    def table_length(self, num_tokens: int, origin: int = 0) -> int:
        """Frames of `num_tokens` tokens, those that are gone included."""
        return -(-self.num_rows(num_tokens, origin) // self.tokens_per_frame)

    def frames_for(self, num_tokens: int, history: int = 0) -> int:
        """Frames that a sequence of `num_tokens` tokens holds after its last step of one token."""
        first = self.first_needed(num_tokens, history)
        return self.table_length(num_tokens) - first // self.tokens_per_frame

    def first_frames(self, num_tokens: int) -> int:
        """Frames that a sequence holds after a first step of `num_tokens` tokens."""
        first = self.first_stored(0, num_tokens)
        return self.table_length(num_tokens) - first // self.tokens_per_frame

    def most_frames(self, num_tokens: int, history: int = 0) -> int:
        """Most frames that a sequence may hold while it grows to `num_tokens` tokens."""
        if self.kind == RECENT and self.window is not None:
            # Those before a step and those behind it, neither beginning with a frame.
            reach = self.window + min(history, RECENT_HISTORY)
            most = reach + max(reach, WHOLE_STEP) + 2 * self.tokens_per_frame
            num_tokens = min(num_tokens, most)
        return self.table_length(num_tokens)

    def useful_bytes(self, num_tokens: int) -> int:
        rows = self.num_rows(num_tokens) - self.first_needed(num_tokens)
        return self.bytes_per_token * rows
