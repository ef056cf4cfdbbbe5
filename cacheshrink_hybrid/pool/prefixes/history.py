"""Texts of earlier requests, long after what was computed of them is gone.

Where prompts part is worth knowing when their rows are not there any more: those to come will part
there as well. A token takes eight bytes here, a text one or two thousand more for where it parts
from others, and what a model remembers of either some thousand times as many.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..counted_frames import counted_store
from ..layout import compile_layout
from ..lifetime import LayerRows
from .search import walk

NUM_TOKENS = 1 << 22
"""That are remembered at most: in 32 MiB, and as much again where texts are of 200 tokens."""
TOKENS_PER_FRAME = 64


class TextHistory:
    """Tokens of requests, as a tree without rows; what no request began like for the longest goes
    first.

    Args:
        num_tokens: that are remembered.
    """

    def __init__(self, num_tokens: int = NUM_TOKENS) -> None:
        row = LayerRows(layer_idx=0, row_bytes=8)
        layout = compile_layout([row], tokens_per_frame=TOKENS_PER_FRAME)
        self._store = counted_store(layout, num_tokens // TOKENS_PER_FRAME, policy="lru")

    def parting(self, tokens: Any) -> int:
        """The deepest position before the last token of a prompt from which requests went on in
        different ways, the prompt included; 0 for none.

        Where the prompt goes on from the end of one of them, as conversations do, nothing parts.
        """
        given = np.asarray(tokens, dtype=np.int64)[:-1]
        node, at = walk(self._store.prefixes.root, given)
        if at < min(node.end, len(given)):
            return at
        while node.parent is not None and (node.end > len(given) or len(node.children) < 2):
            node = node.parent
        return node.end

    def add(self, tokens: Any) -> None:
        """A request had these tokens; more than are remembered at most are left out."""
        store, name = self._store, "added"
        if not len(tokens) or store.need(len(tokens)) > store.pool.num_frames:
            return
        tokens = np.asarray(tokens, dtype=np.int64)
        store.create(name)
        found = store.resume_prefix(name, tokens)
        store.reserve([name], len(tokens) - found.num_tokens)
        store.commit([name])
        store.offer_prefix(name, tokens)
        store.free(name)
