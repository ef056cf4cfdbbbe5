"""Trees that were kept in a file hold the same bytes in fewer or other frames."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.errors import CacheFullError, SequenceError
from cacheshrink_hybrid.pool.prefixes.tensor_faults import tensor_fault
from cacheshrink_hybrid.pool.prefixes.tensors import fill, tensors_of
from tests.pool.shadow import Shadowed, small_layout

LAYOUTS = {
    "attention": small_layout(state=False, windows=(None,)),
    "hybrid": small_layout(),
    "exact": small_layout(state=False, windows=(None,), recent=5, first=4),
    "states alone": small_layout(windows=()),
}


def filled(kind: str) -> Shadowed:
    """Sequences of which all left something behind, some while others still run."""
    made = Shadowed(LAYOUTS[kind], 400, policy="priority")
    for _ in range(12):
        seq_id = made.create()
        found = made.resume(seq_id, 90)
        for count in (30, 40):
            made.append([seq_id], [count - found.num_tokens % 7])
            made.offer(seq_id)
    return made


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_comes_back_is_what_was_kept(kind: str) -> None:
    made = filled(kind)
    tensors = tensors_of(made.store.prefixes)
    assert tensor_fault(made.store.prefixes, tensors) is None
    other = Shadowed(LAYOUTS[kind], 400, policy="priority")
    fill(other.store.prefixes, tensors)
    other.check()
    other.check_prefixes()
    assert other.pool.num_held == len(tensors["frames"]) == other.store._frames.num_evictable
    for text in made.texts:
        assert other.store.prefixes.find(text) == made.store.prefixes.find(text)
    kinds = [sorted(node.kind for node in x.store.prefixes) for x in (made, other)]
    assert kinds[0] == kinds[1] and {"even", "odd"} <= set(kinds[0])
    made.store.free(*made.store.seq_ids)
    before, after = made.store.prefixes.statistics(), other.store.prefixes.statistics()
    assert (after.kept_tokens, after.checkpoints) == (before.kept_tokens, before.checkpoints)
    for store in (made.store, other.store):
        store.prefixes.make_free(store.pool.num_free // 3)
    for text in made.texts:
        assert other.store.prefixes.find(text) == made.store.prefixes.find(text)
    other.store.prefixes.make_free(400)
    assert other.pool.num_held == 0


def test_a_tree_of_nothing() -> None:
    made, other = (Shadowed(LAYOUTS["hybrid"], 40) for _ in range(2))
    fill(other.store.prefixes, tensors_of(made.store.prefixes))
    assert other.pool.num_held == 0


def test_refusals_change_nothing() -> None:
    made, small = filled("hybrid"), Shadowed(LAYOUTS["hybrid"], 20)
    tensors = tensors_of(made.store.prefixes)
    with pytest.raises(CacheFullError, match="give it more than"):
        fill(small.store.prefixes, tensors)
    assert small.pool.num_held == 0
    with pytest.raises(SequenceError, match="not empty"):
        fill(made.store.prefixes, tensors)
    made.check_prefixes()
