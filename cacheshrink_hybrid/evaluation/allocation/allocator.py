"""What an allocator of KV and recurrent state is, and the bytes of a model that it deals in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ...errors import PlanError
from ...pool.layout import compile_layout
from ...pool.lifetime import LayerRows
from ...pool.state_map import StateRows

PAGE_TOKENS = 16


class Sizes:
    """A model's bytes, as allocators see them.

    Args:
        rows, states: of `compile_layout`; all rows have one lifetime.
    """

    def __init__(self, rows: Sequence[LayerRows], states: Sequence[StateRows]) -> None:
        windows = {row.window for row in rows}
        if len(windows) != 1:
            raise PlanError(f"the study wants layers of one lifetime; got windows {windows}")
        self.rows, self.states = tuple(rows), tuple(states)
        self.window = windows.pop()
        self.layout = compile_layout(rows, states)
        self.token_bytes = self.layout.bytes_per_token
        self.state_bytes = self.layout.state.useful_bytes
        self.num_attention = len(rows)
        self.num_mixers = len({state.layer_idx for state in states})

    def kept(self, num_tokens: int) -> int:
        """Tokens of a sequence that are still seen."""
        return num_tokens if self.window is None else min(num_tokens, self.window)

    def useful(self, num_tokens: int) -> int:
        return self.state_bytes + self.token_bytes * self.kept(num_tokens)

    def pages(self, num_tokens: int, page_tokens: int = PAGE_TOKENS) -> int:
        """Pages of `page_tokens` tokens; one more for a window that lies across page ends."""
        pages = -(-num_tokens // page_tokens)
        if self.window is not None:
            pages = min(pages, -(-self.window // page_tokens) + 1)
        return pages


class Allocator(ABC):
    """Sequences in `capacity` bytes.

    Attributes:
        moved_bytes: bytes copied to make room.
        held_bytes: bytes that no other sequence could have.
    """

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        self.sizes = sizes
        self.capacity = capacity
        self.moved_bytes = 0

    def admit(self, name: int, num_tokens: int) -> bool:
        """Take in a sequence with its state and `num_tokens` tokens, or change nothing."""
        return self._take(name, self._units(num_tokens), True)

    def grow(self, name: int, num_tokens: int) -> bool:
        """Let a sequence have `num_tokens` tokens in all, or change nothing."""
        return self._take(name, self._units(num_tokens), False)

    def reach(self, num_tokens: int) -> int:
        """Most tokens that the units for `num_tokens` tokens hold."""
        units = self._units(num_tokens)
        return max(num_tokens, units * self.unit_tokens) if units else num_tokens

    unit_tokens = PAGE_TOKENS

    def _units(self, num_tokens: int) -> int:
        return self.sizes.pages(num_tokens, self.unit_tokens)

    @abstractmethod
    def _take(self, name: int, units: int, new: bool) -> bool: ...

    @abstractmethod
    def release(self, name: int) -> None: ...

    @property
    @abstractmethod
    def held_bytes(self) -> int: ...

    def check(self) -> None:  # noqa: B027
        """Raise if two sequences hold the same bytes; nothing to compare where bytes are counts."""
