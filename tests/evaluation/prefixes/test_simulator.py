"""The simulator counts what the package's own tree saves, in the bytes that it is given."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.errors import CacheFullError
from cacheshrink_hybrid.evaluation.prefixes.simulator import Outcome, distinct_tokens, simulate
from cacheshrink_hybrid.evaluation.prefixes.workloads import PromptRequest, synthetic_workload
from cacheshrink_hybrid.pool.eviction import POLICIES
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from cacheshrink_hybrid.pool.prefixes.lookup import EVICTED, NO_CHECKPOINT, NO_PREFIX
from cacheshrink_hybrid.pool.prefixes.placement import NAMED
from cacheshrink_hybrid.pool.prefixes.prefill_cost import PrefillCost
from cacheshrink_hybrid.pool.state_map import StateRows

ROWS = [LayerRows(layer_idx=0, row_bytes=64)]
ATTENTION = compile_layout(ROWS)
HYBRID = compile_layout(
    ROWS, [StateRows(layer_idx=1, name="recurrent", num_rows=200, row_bytes=64)]
)
ROOMY = 1 << 30


def requests(*prompts: range | list[int]) -> list[PromptRequest]:
    return [
        PromptRequest(float(i), np.asarray(prompt, dtype=np.int64), np.array([-i - 1, -i - 1]))
        for i, prompt in enumerate(prompts)
    ]


def outcome(given: list[PromptRequest], budget: int = ROOMY, **settings) -> Outcome:
    chosen = {"placement": "grid", "eviction": "lru", "cost": PrefillCost(), **settings}
    return simulate(HYBRID, given, budget, **chosen)


def test_what_is_saved() -> None:
    shared = list(range(100))
    given = requests(*(shared + [1000 + i] * 30 for i in range(4)))
    for placement, saved in (("branch", 200), ("block_50", 300), ("last", 0), ("no_cache", 0)):
        found = outcome(given, placement=placement)
        numbers = found.to_dict()
        assert (numbers["requests"], numbers["asked_tokens"]) == (4, 4 * 130)
        assert numbers["saved_tokens"] == saved == numbers["saved_seconds"]
        assert numbers["hits"] == saved / 100
        assert numbers["saved_share"] == saved / 520
    reasons = outcome(given, placement="branch").to_dict()["reasons"]
    assert reasons == {NO_CHECKPOINT: 1, NO_PREFIX: 3}
    assert outcome(given, placement="block_50").to_dict()["checkpoints"] == pytest.approx(2.0)
    second = outcome(given, placement="branch").served[1]
    assert (second.arrival, second.prompt_tokens, second.matched_tokens) == (1.0, 130, 100)
    assert (second.hit_tokens, second.reason, second.saved_seconds) == (0, NO_CHECKPOINT, 0.0)
    whole = {"placement": "branch", "eviction": "lru", "cost": PrefillCost()}
    assert simulate(ATTENTION, given, ROOMY, **whole).saved_tokens == 300


def test_seconds_are_those_of_the_cost() -> None:
    cost = PrefillCost()
    cost.observe(0, 100, 100 * 101 / 2)
    cost.observe(100, 200, 200 * 201 / 2 - 100 * 101 / 2)
    given = requests(range(100), [*range(100), 7])
    found = outcome(given, cost=cost)
    assert found.saved_tokens == 100
    numbers = found.to_dict()
    assert numbers["saved_seconds"] == pytest.approx(5050)
    assert numbers["cold_seconds"] == pytest.approx(5050 + 5151)


def test_memory_that_ends() -> None:
    given = requests(*([[i] * 600 for i in range(20)] * 2))
    frames = HYBRID.frames_for(602)
    tight = outcome(given, (3 * frames + 1) * HYBRID.frame_bytes)
    assert tight.saved_tokens == 0 < tight.evicted
    assert tight.to_dict()["reasons"] == {NO_PREFIX: 20, EVICTED: 20}
    too_long = outcome(given + requests(range(5000)), (3 * frames + 1) * HYBRID.frame_bytes)
    assert (len(too_long.served), too_long.too_long) == (40, 1)
    with pytest.raises(CacheFullError, match="give at least"):
        outcome(given, 1000)


@pytest.mark.parametrize("placement", [*NAMED, "dp_3", "align_64", "block_64"])
@pytest.mark.parametrize("eviction", [*POLICIES, "lru_cap_2"])
def test_every_strategy_runs(placement: str, eviction: str) -> None:
    given = synthetic_workload("mixed", 12)
    budget = distinct_tokens(given) * 64 // 3
    found = outcome(given, budget, placement=placement, eviction=eviction)
    assert 0 <= found.saved_tokens <= found.asked_tokens
    again = outcome(given, budget, placement=placement, eviction=eviction)
    assert again == found


def test_learning_beats_what_does_not_learn() -> None:
    """On the mixed load, in little memory."""
    given = synthetic_workload("mixed", 250)
    budget = distinct_tokens(given) * 64 // 6
    ours = outcome(given, budget, placement="learned", eviction="learned").saved_share
    for placement in ("grid", "branch", "align_528", "dp_3"):
        for eviction in ("lru", "seconds_per_byte"):
            assert outcome(given, budget, placement=placement, eviction=eviction).saved_share < ours


def test_tokens_that_begin_alike_count_once() -> None:
    given = requests(range(128), [*range(64), *range(500, 564)])
    assert distinct_tokens(given) == 64 + 2 * 64 + 2 * 2
