"""Where along their way sequences are kept."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.counted_frames import counted_store
from cacheshrink_hybrid.pool.prefixes.keeper import END, PIECE, PLANNED, PROMPT, PrefixKeeper
from cacheshrink_hybrid.pool.prefixes.placement import placement_of
from cacheshrink_hybrid.pool.prefixes.replay import PIECE_TOKENS, replay
from cacheshrink_hybrid.pool.store import SequenceStore
from tests.pool.shadow import small_layout

HYBRID = small_layout(windows=(None,))


def served(placement: str, prompts: list[list[int]]) -> SequenceStore:
    """After these prompts, each with three tokens behind it."""
    store = counted_store(HYBRID, 5000, policy="lru")
    keeper = PrefixKeeper(store, placement_of(placement))
    for number, prompt in enumerate(prompts):
        fed = np.array([*prompt, *[-number - 1] * 3])
        replay(store, keeper, fed, len(prompt))
    return store


def states(store: SequenceStore) -> dict[int, str]:
    """Positions with a state, and what they are kept for."""
    return {node.end: node.kind for node in store.prefixes if node.state is not None}


@pytest.mark.parametrize(
    ("placement", "kept"),
    [
        ("grid", {PIECE_TOKENS: PIECE, 600: PIECE, 603: END}),
        ("learned", {PIECE_TOKENS: PIECE, 600: PIECE, 603: END}),
        ("branch", {600: PROMPT, 603: END}),
        ("last", {600: PROMPT, 603: END}),
        ("marconi", {603: END}),
        ("block_250", {250: PLANNED, 500: PLANNED}),
        ("kv_only", {}),
    ],
)
def test_what_is_kept_of_a_first_prompt(placement: str, kept: dict[int, str]) -> None:
    assert states(served(placement, [[5] * 600])) == kept


def test_pieces_are_kept_until_something_is_known_of_ends() -> None:
    """The second prompt goes on from a piece of the first, 188 tokens before its end; so the third
    one, which begins like none, is kept there."""
    first, second, third = [5] * 600, [*[5] * 512, *[6] * 188], [7] * 1100
    kept = states(served("learned", [first, second, third]))
    assert kept[1100 - 188] == PLANNED
    assert [end for end, kind in kept.items() if kind == PIECE] == [512, 600]  # of the first one
    grid = states(served("grid", [first, second, third]))
    assert grid[1024] == PIECE and 1100 - 188 not in grid
