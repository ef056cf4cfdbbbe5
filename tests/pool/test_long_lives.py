"""A hundred thousand random operations of sequences and requests, in a pool that is too small, with
memories below it, against the plain model in `shadow`."""

from __future__ import annotations

import pytest

from cacheshrink_hybrid.pool.eviction import POLICIES
from cacheshrink_hybrid.pool.prefixes import tier as tier_module
from cacheshrink_hybrid.pool.prefixes.keeper import PrefixKeeper
from cacheshrink_hybrid.pool.prefixes.placement import placement_of
from cacheshrink_hybrid.pool.prefixes.prompt import Prompt, Prompted
from tests.pool.prefixes.test_tier import LAYOUTS as OVER_MEMORIES
from tests.pool.prefixes.test_tier import tiers, with_tiers
from tests.pool.shadow import Shadowed
from tests.pool.test_store_stateful import LAYOUTS, random_operation

NUM_OPERATIONS = 100_000
PER_CHECK = 1000
REQUESTS = 0.02
"""Of all operations; each of these is a whole request."""
PIECE_TOKENS = 24
PLACEMENTS = ("learned", "grid", "marconi", "block_10", "dp_3", "sqrt", "balanced_2")


class Requests(PrefixKeeper):
    """Requests of a shadowed store: looked up, prefilled in pieces, kept, and now and then aborted.

    Attributes:
        num_served, num_refused: those that left with all their tokens, and that found no room.
    """

    def __init__(self, shadowed: Shadowed, placement: str) -> None:
        super().__init__(shadowed.store, placement_of(placement))
        self.shadowed = shadowed
        self.num_served = self.num_refused = 0

    def _offer(self, prompt: Prompted, *, checkpoint: bool, kind: str) -> None:
        super()._offer(prompt, checkpoint=checkpoint, kind=kind)
        if self.store.num_tokens(prompt.seq_id):
            self.shadowed.note_offer(prompt.seq_id, checkpoint=checkpoint)  # type: ignore[arg-type]

    def serve(self) -> None:
        made, random = self.shadowed, self.shadowed.random
        seq_id = made.create()
        twin = made.twins[seq_id]
        own = random.integers(0, 3, random.integers(0, 9)).tolist()
        asked = [*twin.text[: random.integers(1, 120)], *own]
        twin.text = (*asked, *random.integers(0, 3, 20).tolist())
        prompt = Prompt(seq_id, asked)
        found = self.begin(prompt)
        made.note_found(seq_id, asked, found)
        aborted = random.random() < 0.1
        while left := len(asked) - prompt.num_computed:
            size = self.piece(prompt, min(left, PIECE_TOKENS))
            if not made.append([seq_id], [size], strays=0):
                self.num_refused += 1
                break
            prompt.num_computed += size
            self.pass_on(prompt)
            if aborted and random.random() < 0.5:
                break
        else:
            prompt.tokens = list(twin.text)
            made.append([seq_id], [int(random.integers(1, 9))], strays=0)
            self.num_served += 1
        self.leave(prompt)
        made.free(seq_id)


def lives() -> list[tuple[str, Shadowed]]:
    """One of every layout, by one policy after another, and of some with memories below."""
    policies = [*POLICIES, "lru_cap_2"]
    found: list[tuple[str, Shadowed]] = []
    for kind in OVER_MEMORIES:
        policy = policies[len(found) % len(policies)]
        frames = {"attention": 20, "states alone": 9}.get(kind, 45)
        made = with_tiers(kind, frames, 30, 60, policy=policy, watched=50)
        found.append((f"{kind} over memories, {policy}", made))
    for kind in LAYOUTS:
        policy = policies[len(found) % len(policies)]
        made = Shadowed(*LAYOUTS[kind], seed=len(found), policy=policy, watched=50)
        found.append((f"{kind}, {policy}", made))
    return found


@pytest.mark.slow
def test_a_hundred_thousand_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_module, "LEAST_GAIN", 4)
    made = lives()
    rounds, done = -(-NUM_OPERATIONS // (len(made) * PER_CHECK)), 0
    for number, (name, shadowed) in enumerate(made):
        requests = Requests(shadowed, PLACEMENTS[number % len(PLACEMENTS)])
        for _ in range(rounds):
            for _ in range(PER_CHECK):
                if shadowed.random.random() < REQUESTS:
                    requests.serve()
                else:
                    random_operation(shadowed, most_at_once=2)
            done += PER_CHECK
            check(shadowed)
        statistics = shadowed.store.prefixes.statistics()
        assert min(statistics.hits, statistics.evicted, shadowed.refusals) > 50, name
        assert requests.num_served > 20, name
        assert all(tier.taken for tier in statistics.tiers), name
        assert not statistics.tiers or statistics.tiers[0].hits > 0, name
        shadowed.store.free(*shadowed.store.seq_ids)
        shadowed.store.prefixes.clear()
        for pool in (shadowed.pool, *(tier.tree.frames.pool for tier in tiers(shadowed))):
            assert pool.num_free == pool.num_frames, name
    assert done >= NUM_OPERATIONS


def check(shadowed: Shadowed) -> None:
    """Integrity of the store and the memories below, and every byte."""
    shadowed.check()
    shadowed.check_prefixes()
    for tier in tiers(shadowed):
        tier.check_integrity()
        shadowed.check_prefixes(tier.tree)
