"""Requests served one after the other in a store, without a model."""

from __future__ import annotations

from typing import Any, Protocol

from ..store import SequenceStore
from .lookup import NO_PREFIX, Lookup
from .prompt import Prompt

PIECE_TOKENS = 512
"""Most tokens of a prompt that are taken at once."""


class Keeping(Protocol):
    """What finds and keeps prefixes, see `keeper`."""

    def begin(self, prompt: Prompt) -> Lookup: ...

    def piece(self, prompt: Prompt, longest: int) -> int: ...

    def pass_on(self, prompt: Prompt) -> None: ...

    def leave(self, prompt: Prompt) -> None: ...


def replay(
    store: SequenceStore, keeper: Keeping | None, tokens: Any, num_prompt_tokens: int
) -> Lookup:
    """Serve one request: prefill in pieces, then what was generated; what it began with.

    Args:
        keeper: of the store; None to keep nothing.
        tokens: that are fed, the prompt first; an array or a list.

    Raises:
        CacheFullError: the store has no room for it.
    """
    served = Prompt("replayed", tokens[:num_prompt_tokens])
    store.create(served.seq_id)
    found = Lookup(0, 0, NO_PREFIX) if keeper is None else keeper.begin(served)
    while left := len(served.tokens) - served.num_computed:
        size = min(left, PIECE_TOKENS)
        size = size if keeper is None else keeper.piece(served, size)
        _take(store, served, size)
        served.num_computed += size
        if keeper is not None:
            keeper.pass_on(served)
    served.tokens = tokens
    if generated := len(tokens) - num_prompt_tokens:
        _take(store, served, generated)
    if keeper is not None:
        keeper.leave(served)
    store.free(served.seq_id)
    return found


def _take(store: SequenceStore, prompt: Prompt, count: int) -> None:
    store.reserve([prompt.seq_id], count)
    store.commit([prompt.seq_id])
