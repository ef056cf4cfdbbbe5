"""Random lives of many sequences in a small pool, against the plain model in `shadow`."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cacheshrink_hybrid.pool.eviction import POLICIES as TABLE
from tests.pool.shadow import Shadowed, coded_layout, codes_of, small_layout

POLICIES = (*TABLE, "lru_cap_2")
LAYOUTS = {
    "exact": (small_layout(state=False, windows=(None,), recent=5, first=4), 60),
    "hybrid": (small_layout(windows=(None,)), 45),
    "window": (small_layout(state=False, windows=(12,)), 16),
    "both": (small_layout(), 45),
    "attention": (small_layout(state=False), 30),
    "state": (small_layout(windows=(None, 20, 5)), 45),
    "states alone": (small_layout(windows=()), 12),
}
"""Layout, and frames of a pool that is a little too small for the lives below."""
LIVES = [
    (kind, policy)
    for i, kind in enumerate(LAYOUTS)
    for j, policy in enumerate(POLICIES)
    if (j - i) % len(POLICIES) < 2
]
"""Every layout under two policies, and every policy on two layouts."""
STEPS = 420
PREFIX_CHECKS = 20
ACTIONS = [
    *("create", "resume", "resume", "append", "append", "append", "fork", "prefix", "remove"),
    *("checkpoint", "offer", "offer", "free"),
]


def random_life(shadowed: Shadowed, steps: int, *, check_every: int = 1) -> str:
    """Random operations; returns a hash of all tables after each of them that was followed by a
    check."""
    history = hashlib.sha256()
    for number in range(steps):
        random_operation(shadowed)
        if number % check_every:
            continue
        shadowed.check()
        if number % PREFIX_CHECKS == 0:
            shadowed.check_prefixes()
        for table in shadowed.tables():
            history.update(repr(table).encode())
    return history.hexdigest()


def random_operation(shadowed: Shadowed, *, most_at_once: int = 4) -> None:
    """One of `ACTIONS`.

    Args:
        most_at_once: sequences of a batch that takes tokens.
    """
    random, running = shadowed.random, shadowed.running()
    action = ACTIONS[random.integers(len(ACTIONS))]
    if action in ("create", "resume") or not running:
        if len(running) < 6:
            seq_id = shadowed.create()
            if action == "resume":
                shadowed.resume(seq_id, int(random.integers(1, 150)))
        else:
            shadowed.free(running[0])
    elif action == "append":
        batch = random.permutation(running)[: random.integers(1, most_at_once + 1)].tolist()
        shadowed.append(batch, random.integers(0, 14, len(batch)).tolist())
    else:
        seq_id = running[random.integers(len(running))]
        num_tokens = shadowed.twins[seq_id].num_tokens
        places = [0, num_tokens, *shadowed.store.checkpoints(seq_id)]
        places += random.integers(0, num_tokens + 1, 2).tolist()
        begin = places[random.integers(len(places))]
        if action == "fork":
            shadowed.copy_prefix(seq_id, num_tokens)
        elif action == "prefix":
            shadowed.copy_prefix(running[random.integers(len(running))], 0)
            shadowed.copy_prefix(seq_id, begin)
        elif action == "remove":
            shadowed.remove(seq_id, begin)
        elif action == "checkpoint":
            shadowed.checkpoint(seq_id)
        elif action == "offer":
            shadowed.offer(seq_id)
        elif action == "free":
            shadowed.free(seq_id)


@pytest.mark.parametrize(("kind", "policy"), LIVES)
def test_random_lives(kind: str, policy: str) -> None:
    seed = list(LAYOUTS).index(kind) * 10 + list(POLICIES).index(policy)
    shadowed = Shadowed(*LAYOUTS[kind], seed=seed, policy=policy)
    random_life(shadowed, STEPS)
    assert shadowed.refusals > 0
    assert shadowed.store.prefixes.evicted > 0
    assert shadowed.saved_tokens > 0
    shadowed.check_prefixes()
    copies = shadowed.store.statistics().copied_bytes > 0
    assert copies == bool(shadowed.layout.classes)  # states are written to fresh frames
    for seq_id in list(shadowed.twins):
        shadowed.free(seq_id)
    shadowed.check()
    assert shadowed.store.num_available == shadowed.pool.num_frames
    shadowed.store.prefixes.clear()
    shadowed.check()
    assert shadowed.pool.num_free == shadowed.pool.num_frames


@pytest.mark.parametrize("policy", ["lru", "learned"])
def test_random_lives_with_coded_states(policy: str) -> None:
    layout = coded_layout()
    shadowed = Shadowed(layout, 50, seed=1, policy=policy, codes=codes_of(layout))
    random_life(shadowed, STEPS)
    statistics = shadowed.store.prefixes.statistics()
    assert statistics.evicted > 0 and statistics.hits > 0 and shadowed.refusals > 0
    shadowed.store.free(*shadowed.store.seq_ids)
    shadowed.store.prefixes.clear()
    assert shadowed.pool.num_free == shadowed.pool.num_frames


def test_the_same_seed_gives_the_same_tables() -> None:
    hashes = {random_life(Shadowed(*LAYOUTS["both"], seed=7), 200) for _ in range(2)}
    assert len(hashes) == 1


class Lives(RuleBasedStateMachine):
    """The same operations, chosen (and shrunk to the shortest failure) by hypothesis."""

    @initialize(kind=st.sampled_from(sorted(LAYOUTS)), num_frames=st.integers(14, 60))
    def begin(self, kind: str, num_frames: int) -> None:
        self.shadowed = Shadowed(LAYOUTS[kind][0], num_frames)

    def some(self, data) -> int:
        return data.draw(st.sampled_from(self.shadowed.running()))

    @precondition(lambda self: len(self.shadowed.twins) < 8)
    @rule()
    def create(self) -> None:
        self.shadowed.create()

    @precondition(lambda self: len(self.shadowed.twins) < 8)
    @rule(length=st.integers(1, 150))
    def resume(self, length: int) -> None:
        self.shadowed.resume(self.shadowed.create(), length)

    @precondition(lambda self: self.shadowed.running())
    @rule(data=st.data())
    def append(self, data) -> None:
        batch = data.draw(st.lists(st.sampled_from(self.shadowed.running()), unique=True))
        counts = data.draw(st.lists(st.integers(0, 30), min_size=len(batch), max_size=len(batch)))
        self.shadowed.append(batch, counts)

    @precondition(lambda self: self.shadowed.running())
    @rule(data=st.data())
    def go_back(self, data) -> None:
        seq_id = self.some(data)
        num_tokens = self.shadowed.twins[seq_id].num_tokens
        self.shadowed.remove(seq_id, data.draw(st.integers(0, num_tokens)))

    @precondition(lambda self: self.shadowed.running() and len(self.shadowed.twins) < 8)
    @rule(data=st.data())
    def copy_prefix(self, data) -> None:
        seq_id = self.some(data)
        num_tokens = self.shadowed.twins[seq_id].num_tokens
        kept = [0, num_tokens, *self.shadowed.store.checkpoints(seq_id)]
        place = data.draw(st.sampled_from(kept) | st.integers(0, num_tokens))
        self.shadowed.copy_prefix(seq_id, place)

    @precondition(lambda self: self.shadowed.running())
    @rule(data=st.data())
    def checkpoint(self, data) -> None:
        self.shadowed.checkpoint(self.some(data))

    @precondition(lambda self: self.shadowed.running())
    @rule(data=st.data(), finish=st.booleans())
    def leave(self, data, finish: bool) -> None:
        seq_id = self.some(data)
        self.shadowed.offer(seq_id)
        if finish:
            self.shadowed.free(seq_id)

    @invariant()
    def intact(self) -> None:
        if hasattr(self, "shadowed"):
            self.shadowed.check()
            self.shadowed.check_prefixes()


TestLives = pytest.mark.slow(pytest.mark.filterwarnings("ignore")(Lives.TestCase))
TestLives.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def test_the_shadow_notices_a_wrong_byte() -> None:
    shadowed = Shadowed(*LAYOUTS["hybrid"])
    seq_id = shadowed.create()
    shadowed.append([seq_id], [5])
    shadowed.check()
    frame = int(shadowed.store.frame_table([seq_id])[0, 0])
    shadowed.pool.frames[frame, 3] ^= 1
    with pytest.raises(AssertionError):
        shadowed.check()
