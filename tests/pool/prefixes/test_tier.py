"""What falls out of a pool comes back with the same bytes, if it is worth its room."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.pool.frame_pool import FramePool
from cacheshrink_hybrid.pool.prefixes import tier as tier_module
from cacheshrink_hybrid.pool.prefixes.lookup import EVICTED
from cacheshrink_hybrid.pool.prefixes.tier import DISK, HOST, LEAST_GAIN, Tier
from tests.pool.shadow import Shadowed, coded_layout, codes_of, small_layout
from tests.pool.test_store_stateful import random_life

LAYOUTS = {
    "attention": small_layout(state=False, windows=(None,)),
    "hybrid": small_layout(windows=(None,)),
    "both": small_layout(),
    "exact": small_layout(state=False, windows=(None,), recent=5, first=4),
    "states alone": small_layout(windows=()),
    "coded": coded_layout(),
}

FEW_FRAMES = {"attention": 20, "states alone": 9}
"""Of a pool that is too small for some random sequences of these; 36 of the others."""


def tier_of(made: Shadowed, num_frames: int, name: str = HOST) -> Tier:
    prefixes = made.store.prefixes
    pool = FramePool(num_frames, made.layout.frame_bytes, poison=True)
    return Tier(name, made.layout, pool, made.policy, prefixes.codes)


def with_tiers(
    kind: str, num_frames: int, *below: int, policy: str = "lru", watched: int = 1
) -> Shadowed:
    """A store with so many frames, and memories with so many below it."""
    layout = LAYOUTS[kind]
    codes = codes_of(layout) if kind == "coded" else None
    made = Shadowed(layout, num_frames, policy=policy, codes=codes, watched=watched)
    tree = made.store.prefixes
    for name, count in zip((HOST, DISK), below, strict=False):
        tree.below = tier = tier_of(made, count, name)
        tree = tier.tree
    return made


def tiers(made: Shadowed) -> list[Tier]:
    found, tree = [], made.store.prefixes
    while isinstance(tree.below, Tier):
        found.append(tree.below)
        tree = tree.below.tree
    return found


def served(made: Shadowed, text: int, count: int) -> tuple[int, ...]:
    """Let a sequence of so many tokens, mostly of a text, come and go; its tokens."""
    seq_id = made.create()
    made.twins[seq_id].text = made.texts[text]
    found = made.resume(seq_id, count).num_tokens
    assert made.append([seq_id], [count - found])
    made.offer(seq_id)
    tokens = tuple(made.twins[seq_id].tokens)
    made.check()
    made.free(seq_id)
    return tokens


def found_again(made: Shadowed, tokens: tuple[int, ...]) -> int:
    """How many of these tokens a sequence begins with, whose bytes are the right ones."""
    seq_id = made.create()
    made.twins[seq_id].text = (*tokens, 0)
    count = made.resume(seq_id, len(tokens) + 1).num_tokens
    made.check()
    made.free(seq_id)
    return count


def matched(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    return next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_fell_comes_back(kind: str) -> None:
    made = with_tiers(kind, 40, 150)
    (host,) = tiers(made)
    kept = [served(made, text, 40 + text) for text in range(3)]
    made.store.prefixes.make_free(40)
    assert made.store.prefixes.num_tokens == 0 == made.pool.num_held
    made.check_prefixes(host.tree)
    assert [found_again(made, tokens) for tokens in kept] == [40, 41, 42]
    made.check_prefixes()
    (now,) = made.store.prefixes.statistics().tiers
    alike = sum(max(matched(kept[n], other) for other in kept[:n]) for n in (1, 2))
    restored = 123 - (alike if kind == "attention" else 0)
    assert (now.hits, now.restored_tokens, now.refused) == (3, restored, 0)
    assert now.held_bytes == host.tree.frames.pool.num_held * made.layout.frame_bytes > 0
    assert [found_again(made, tokens) for tokens in kept] == [40, 41, 42]
    assert made.store.prefixes.statistics().tiers[0].hits == 3  # they are above again
    made.store.prefixes.clear()
    assert host.tree.frames.pool.num_held == 0 == made.pool.num_held


def test_two_prompts_share_what_fell_once() -> None:
    made = with_tiers("attention", 60, 60)
    (host,) = tiers(made)
    first, second = served(made, 3, 64), served(made, 4, 64)  # alike for 37 tokens
    made.store.prefixes.make_free(60)
    assert host.tree.num_tokens == 128 - matched(first, second)
    assert [found_again(made, tokens) for tokens in (first, second)] == [64, 64]


def test_what_falls_further_comes_back_from_the_last_memory() -> None:
    made = with_tiers("hybrid", 40, 20, 200)
    host, disk = tiers(made)
    kept = [served(made, text, 48) for text in (0, 1, 2)]
    made.store.prefixes.make_free(40)
    assert host.tree.evicted > 0 and disk.taken > 0
    assert [found_again(made, tokens) for tokens in kept] == [48, 48, 48]
    assert host.hits + disk.hits == 3 and disk.hits > 0
    assert [tier.name for tier in made.store.prefixes.statistics().tiers] == [HOST, DISK]


def test_what_saves_nothing_is_left_behind() -> None:
    """Rows without a state, in a model that goes on from states alone."""
    made = with_tiers("hybrid", 40, 40)
    seq_id = made.create()
    made.append([seq_id], [24])
    made.store.offer_prefix(seq_id, made.twins[seq_id].tokens, checkpoint=False)
    made.free(seq_id)
    made.store.prefixes.make_free(40)
    (host,) = tiers(made)
    assert made.store.prefixes.evicted == 1 and host.taken == 0 == host.tree.num_tokens


def test_a_memory_keeps_what_is_worth_more() -> None:
    """By priority: what weighs less than all that is there is refused."""
    made = with_tiers("attention", 60, 6, policy="priority")
    (host,) = tiers(made)
    for text, priority in ((0, 3.0), (1, 1.0), (2, 5.0)):
        seq_id = made.create()
        made.twins[seq_id].text = made.texts[text]
        made.append([seq_id], [40])
        made.offer(seq_id, priority)
        made.free(seq_id)
        made.store.prefixes.make_free(60)
        assert (host.refused > 0) == (text > 0)
        due = {0: {3.0}, 1: {3.0}, 2: {3.0, 5.0}}[text]
        assert {node.priority for node in host.tree if not node.children} == due
        host.check_integrity()


def test_what_one_memory_refuses_the_next_one_takes() -> None:
    made = with_tiers("attention", 60, 6, 60, policy="priority")
    host, disk = tiers(made)
    kept = []
    for text, priority in ((0, 3.0), (1, 1.0)):
        seq_id = made.create()
        made.twins[seq_id].text = made.texts[text]
        made.append([seq_id], [40])
        kept.append(tuple(made.twins[seq_id].tokens))
        made.offer(seq_id, priority)
        made.free(seq_id)
        made.store.prefixes.make_free(60)
    assert host.refused > 0 and host.tree.evicted == 0 and disk.taken == 1
    assert [found_again(made, tokens) for tokens in kept] == [40, 40]
    assert (host.hits, disk.hits) == (1, 1)


def test_little_is_computed_rather_than_copied() -> None:
    made = with_tiers("attention", 40, 40)
    tokens = served(made, 0, LEAST_GAIN - 1)
    made.store.prefixes.make_free(40)
    assert found_again(made, tokens) == 0
    longer = served(made, 0, 60)
    made.store.prefixes.make_free(40)
    assert found_again(made, longer[:LEAST_GAIN]) == LEAST_GAIN


def test_running_sequences_come_before_what_fell() -> None:
    made = with_tiers("hybrid", 30, 60)
    layout = made.layout
    tokens = served(made, 0, 48)
    made.store.prefixes.make_free(30)
    running = made.create()
    state = layout.state.num_frames
    assert made.append([running], [8 * (30 - state - 4)])
    held = made.store.num_held(running)
    seq_id = made.create()
    made.twins[seq_id].text = (*tokens, 0)
    found = made.resume(seq_id, 49)
    assert (found.num_tokens, found.reason) == (0, EVICTED)
    assert made.store.num_held(running) == held
    made.check()
    made.free(running)
    assert found_again(made, tokens) == 48


@pytest.mark.parametrize("kind", LAYOUTS)
def test_random_lives_over_two_memories(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_module, "LEAST_GAIN", 4)
    made = with_tiers(kind, FEW_FRAMES.get(kind, 36), 30, 60, policy="learned")
    for _ in range(4):
        random_life(made, 60, check_every=20)
        for tier in tiers(made):
            tier.check_integrity()
            made.check_prefixes(tier.tree)
    first, second = made.store.prefixes.statistics().tiers
    assert first.taken > 0 and first.hits + second.hits > 0
    made.store.free(*made.store.seq_ids)
    made.store.prefixes.clear()
    for pool in (made.pool, *(tier.tree.frames.pool for tier in tiers(made))):
        assert pool.num_free == pool.num_frames
