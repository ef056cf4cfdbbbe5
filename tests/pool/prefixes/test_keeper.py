"""Where along their way sequences are kept."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.pool.counted_frames import counted_store
from cacheshrink_hybrid.pool.prefixes.keeper import (
    BRANCH,
    END,
    PIECE,
    PLANNED,
    PROMPT,
    PrefixKeeper,
)
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


@pytest.mark.parametrize(("placement", "again"), [("learned", BRANCH), ("grid", None)])
def test_texts_tell_where_prompts_part_whose_rows_are_gone(
    placement: str, again: str | None
) -> None:
    """Two prompts part at 300, nothing is left of the first when the second comes."""
    store = counted_store(HYBRID, 5000, policy="lru")
    keeper = PrefixKeeper(store, placement_of(placement))
    for end in ([6] * 100, [7] * 100):
        store.prefixes.clear()
        replay(store, keeper, np.array([5] * 300 + end), 400)
    assert states(store).get(300) == again


def test_rows_that_are_there_tell_where_prompts_part() -> None:
    """Texts part at 300, and half of the rows up to there are kept: the state is put behind these,
    as far as the next prompt was seen to go."""
    store = counted_store(HYBRID, 5000, policy="lru")
    keeper = PrefixKeeper(store, placement_of("learned"))
    replay(store, keeper, np.array([5] * 300 + [6] * 100), 400)
    for kept, parting in ((149, 300), (150, 150)):
        store.prefixes.clear()
        replay(store, PrefixKeeper(store, placement_of("kv_only")), np.array([5] * kept), kept)
        replay(store, keeper, np.array([5] * 300 + [kept] * 100), 400)
        assert [end for end, kind in states(store).items() if kind == BRANCH] == [parting]


def test_nobody_remembers_texts_where_rows_are_enough() -> None:
    attention = counted_store(small_layout(state=False, windows=(None,)), 500, policy="lru")
    assert PrefixKeeper(attention, placement_of("learned"))._history is None
    assert (
        PrefixKeeper(counted_store(HYBRID, 500, policy="lru"), placement_of("grid"))._history
        is None
    )
