"""Requests that begin alike take over what was computed before; outputs do not tell."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.pool.prefixes.lookup import (
    ALL,
    FORGOTTEN,
    LAST_TOKEN,
    NO_CHECKPOINT,
    NO_PREFIX,
    WHOLE_PROMPTS,
)
from cacheshrink_hybrid.pool.prefixes.placement import Placement
from tests.engine.failures import failing
from tests.engine.idle import assert_idle
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

MEMORY = 16 << 20
WISH = SamplingParams(max_tokens=4, ignore_eos=True)
SETTINGS: dict[str, dict] = {
    "llama": {},
    "exact": {"cache_bits": "auto", "exact_sinks": 4, "exact_window": 20},
    "bamba": {},
    "qwen3_next": {},
    "qwen3_5_text": {},
    "gemma3_text": {},
    "coded states": {"state_ratio": 2.0, "state_dtype": "float16", "replay_length": 5},
}
CASE_OF = {"exact": "llama", "coded states": "bamba"}
ANYWHERE = ("llama",)
"""Those that go on from any token."""
DENSE = Placement(
    name="dense",
    at_pieces=True,
    least_distance=1,
    at_branches=True,
    at_prompts=True,
    at_ends=True,
)
"""A checkpoint behind every piece, however little a tiny model's rows weigh beside its states."""


@cache
def model_of(name: str) -> PreTrainedModel:
    source = tiny_model(CASE_OF.get(name, name), max_position_embeddings=4096)
    return converted_copy(source, 4.0, "auto", metric="activation", **SETTINGS[name])


QUICK = [
    name
    if name in ("llama", "bamba", "gemma3_text")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in SETTINGS
]
"""One with rows alone, one with states, one with windows; the others where there is time."""


def engine(name: str, **settings) -> LLM:
    given = {"cache_memory": MEMORY, "prefill_chunk": 64, "prefix_placement": DENSE, **settings}
    return LLM(model_of(name), **given)


def text(count: int, seed: int) -> list[int]:
    """Texts of different seeds begin with different tokens."""
    return [10 + seed, *random_ids(1, count - 1, seed=seed)[0].tolist()]


def served(llm: LLM, prompt: Sequence[int], wish: SamplingParams = WISH) -> tuple[int, ...]:
    return llm.generate(list(prompt), wish)[0].token_ids


def saved(llm: LLM, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that each of these prompts took over; all outputs are those of a cold engine."""
    cold = LLM(llm.runner.model, cache_memory=MEMORY, prefill_chunk=64, prefix_cache=False)
    counts = []
    for prompt in prompts:
        before = llm.statistics.prefixes.saved_tokens
        assert served(llm, prompt) == served(cold, prompt)
        counts.append(llm.statistics.prefixes.saved_tokens - before)
        llm.store.check_integrity()
    assert cold.statistics.prefixes.lookups == 0 == cold.store.pool.num_held
    return counts


@pytest.mark.parametrize("name", SETTINGS)
def test_a_prefix_shorter_than_a_piece(name: str) -> None:
    shared = text(40, 0)
    llm = engine(name)
    counts = saved(llm, [shared + text(30, seed) for seed in (1, 2, 3, 4)])
    assert counts == ([0, 40, 40, 40] if name in ANYWHERE else [0, 0, 40, 40])
    assert_idle(llm)


@pytest.mark.parametrize("name", SETTINGS)
def test_exact_repeats(name: str) -> None:
    llm = engine(name)
    counts = saved(llm, [text(100, 0)] * 4)
    assert counts == ([0, 99, 99, 99] if name in ANYWHERE else [0, 64, 99, 99])
    reasons = llm.statistics.prefixes
    assert reasons.misses == {NO_PREFIX: 1}
    assert reasons.limits == ({ALL: 3} if name in ANYWHERE else {LAST_TOKEN: 1, ALL: 2})


@pytest.mark.parametrize("name", SETTINGS)
def test_one_edit_in_a_long_template(name: str) -> None:
    template = text(300, 0)
    edited = [[*template[:150], token, *template[151:]] for token in (5, 6, 7, 8)]
    counts = saved(engine(name), [template, *edited])
    assert counts == ([0, *[150] * 4] if name in ANYWHERE else [0, 128, *[150] * 3])


@pytest.mark.parametrize("name", QUICK)
def test_conversations_go_on_where_they_ended(name: str) -> None:
    llm, prompt = engine(name), text(50, 0)
    for turn in range(1, 5):
        answer = llm.generate(prompt, SamplingParams(max_tokens=9, ignore_eos=True))[0]
        computed = [*prompt, *answer.token_ids][:-1]
        prompt = [*prompt, *answer.token_ids, *text(20, turn)]
        assert llm.store.prefixes.find(prompt).num_tokens == len(computed)
    assert llm.statistics.prefixes.hits == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_long_prompts_that_part_far_from_any_piece(name: str) -> None:
    """1500 tokens alike, 700 of each prompt's own."""
    shared = text(1500, 0)
    llm = engine(name, prefill_chunk=512)
    counts = saved(llm, [shared + text(700, seed) for seed in (1, 2, 3, 4)])
    assert counts == ([0, *[1500] * 3] if name in ANYWHERE else [0, 1024, 1500, 1500])


@pytest.mark.parametrize("name", SETTINGS)
def test_what_was_aborted_is_gone_on_with(name: str) -> None:
    llm, prompt = engine(name), text(300, 0)
    llm.add_request(prompt, WISH, request_id="goes")
    for _ in range(2):
        llm.step()
    llm.abort("goes")
    assert saved(llm, [prompt]) == [128]


@pytest.mark.parametrize("name", QUICK)
def test_two_long_conversations_in_a_pool_for_one_and_a_half(name: str) -> None:
    """Who runs gets the room; nothing is refused, and what is left still helps."""
    roomy = engine(name)
    layout = roomy.store.layout
    frames = roomy.store.need(470) * 3 // 2 + 4 * layout.state.num_frames
    llm = engine(name, cache_memory=(frames + 1) * layout.frame_bytes, prefix_placement="grid")
    chats = [text(450, seed) for seed in (1, 2)]
    prompts = [chat[: 300 + 30 * turn] for turn in range(6) for chat in chats]
    counts = saved(llm, prompts)
    assert sum(counts) > 0.3 * sum(map(len, prompts))
    statistics = llm.statistics
    assert statistics.preemptions == 0
    assert statistics.prefixes.evicted > 0
    assert_idle(llm)


@pytest.mark.parametrize("name", QUICK)
def test_a_preempted_request_takes_over_its_own_beginning(name: str) -> None:
    roomy = engine(name)
    wish = SamplingParams(max_tokens=30, ignore_eos=True)
    prompts = [text(40 + seed, seed) for seed in range(4)]
    due = [served(roomy, prompt, wish) for prompt in prompts]
    need = roomy.store.need(75)
    llm = engine(name, cache_memory=(2 * need + 2) * roomy.store.layout.frame_bytes)
    outputs = llm.generate(prompts, wish)
    assert [output.token_ids for output in outputs] == due
    assert_idle(llm)


@pytest.mark.parametrize("name", ["llama", "bamba", "qwen3_next", "exact"])
def test_logits_are_bit_equal_where_pieces_are_equal(name: str) -> None:
    """The second prompt goes on at the end of a piece of the first one."""
    llm, cold = engine(name, prefix_state_dtype="live"), engine(name, prefix_cache=False)
    shared = text(128, 0)
    served(llm, shared + text(40, 1))
    found = []
    for one in (llm, cold):
        prefill = one.runner.prefill

        def recorded(seq_id, tokens, prefill=prefill, **settings):
            logits = prefill(seq_id, tokens, **settings)
            found.append(logits)
            return logits

        one.runner.prefill = recorded  # type: ignore[method-assign]
        served(one, shared + text(50, 2))
    assert llm.statistics.prefixes.saved_tokens == 128
    warm, *pieces = found
    assert len(pieces) == 3
    torch.testing.assert_close(warm, pieces[-1], rtol=0, atol=0)


def test_requests_that_wait_take_over_from_those_before_them() -> None:
    """Both are there from the start; the second is looked up when its turn comes."""
    llm, shared = engine("llama"), text(100, 0)
    llm.generate([shared + text(10, seed) for seed in (1, 2)], WISH)
    assert llm.statistics.prefixes.saved_tokens == 100


@pytest.mark.parametrize(("reuse", "most"), [(True, 5), (False, 1)])
def test_what_requests_share_is_there_once(reuse: bool, most: int) -> None:
    """One long prompt and a half fit; more requests that share it run beside each other."""
    roomy = engine("llama")
    frames = roomy.store.need(300) * 3 // 2
    memory = (frames + 1) * roomy.store.layout.frame_bytes
    llm = engine("llama", cache_memory=memory, prefix_cache=reuse)
    shared, wish = text(250, 0), SamplingParams(max_tokens=20, ignore_eos=True)
    prompts = [shared + text(5, seed) for seed in range(1, 6)]
    for prompt in prompts:
        llm.add_request(prompt, wish)
    running, found = 0, []
    while llm.has_requests:
        found += [output for output in llm.step() if output.finished]
        running = max(running, llm.statistics.running)
    assert running == most
    assert llm.statistics.preemptions == 0
    tokens = {output.prompt_ids: output.token_ids for output in found}
    assert [tokens[tuple(p)] for p in prompts] == [served(roomy, p, wish) for p in prompts]


def test_a_change_of_the_model_forgets_everything() -> None:
    model = copy.deepcopy(model_of("llama"))
    llm = LLM(model, cache_memory=MEMORY)
    prompt = text(60, 0)
    before = served(llm, prompt)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    after = served(llm, prompt)
    assert after != before
    assert llm.statistics.prefixes.misses == {NO_PREFIX: 1, FORGOTTEN: 1}
    assert served(llm, prompt) == after
    assert llm.statistics.prefixes.hits == 1


def test_a_request_that_a_change_came_into_leaves_nothing() -> None:
    model = copy.deepcopy(model_of("llama"))
    llm = LLM(model, cache_memory=MEMORY)
    llm.add_request(text(60, 0), WISH)
    llm.step()
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    while llm.has_requests:
        llm.step()
    assert llm.store.pool.num_held == 0


def test_after_an_error_nothing_is_kept_of_the_request() -> None:
    llm = engine("bamba")
    broken = failing(llm.runner.model, ValueError("broken"), calls=(1,), late=True)
    with broken, pytest.raises(ValueError, match="broken"):
        llm.generate(text(100, 0), WISH)
    assert saved(llm, [text(100, 0)]) == [64]  # of the piece before
    assert_idle(llm)


def test_states_alone() -> None:
    """No rows, and prompts that part where no state is."""
    model = tiny_model("mamba2")
    frames = LLM(model, cache_memory=MEMORY).store.layout.state.num_frames * 5
    memory = (frames + 1) * LLM(model, cache_memory=MEMORY).store.layout.frame_bytes
    llm = LLM(model, cache_memory=memory, prefix_placement=DENSE, prefill_chunk=64)
    shared = text(80, 0)
    prompts = [shared[:count] + text(30, seed) for seed, count in ((1, 80), (2, 80), (3, 80))]
    assert saved(llm, [*prompts, prompts[2], text(9, 4), text(9, 5), prompts[2]])[:3] == [0, 64, 80]
    assert llm.statistics.prefixes.evicted > 0
    assert_idle(llm)


def test_prompts_that_are_taken_whole() -> None:
    llm = LLM(tiny_model("mamba"), cache_memory=MEMORY)
    for _ in range(2):
        llm.generate(text(20, 0), WISH)
    assert llm.statistics.prefixes.misses == {WHOLE_PROMPTS: 2}
    assert llm.store.pool.num_held == 0


@pytest.mark.parametrize(
    ("placement", "counts", "reason"),
    [
        ("branch", [0, 0, 80], NO_CHECKPOINT),
        ("last", [0, 0, 0], NO_CHECKPOINT),
        ("kv_only", [0, 0, 0], NO_CHECKPOINT),
        ("block_30", [0, 60, 60], NO_PREFIX),
        ("balanced_3", [0, 75, 75], NO_PREFIX),
        ("sqrt", [0, 80, 80], NO_PREFIX),
        ("log_16", [0, 64, 64], NO_PREFIX),
        ("dp_3", [0, 75, 75], NO_PREFIX),
    ],
)
def test_placements(placement: str, counts: list[int], reason: str) -> None:
    llm = engine("bamba", prefix_placement=placement)
    shared = text(80, 0)
    assert saved(llm, [shared + text(20, seed) for seed in (1, 2, 3)]) == counts
    assert reason in llm.statistics.prefixes.misses
    conversation = [*shared, *text(20, 3), *served(llm, shared + text(20, 3)), 5]
    (count,) = saved(llm, [conversation])
    ends = {"branch": 103, "last": 103, "kv_only": 0, "log_16": 64, "block_30": 90}
    assert count == ends.get(placement, 100 if placement == "sqrt" else 75)


@pytest.mark.parametrize("eviction", ["marconi", "lru_cap_2", "lru_path"])
def test_evictions_of_others(eviction: str) -> None:
    """In memory for little more than one of these prompts, of two conversations in turn."""
    roomy = engine("bamba")
    layout = roomy.store.layout
    frames = roomy.store.need(130) + 2 * layout.state.num_frames + 4
    memory = (frames + 1) * layout.frame_bytes
    llm = engine("bamba", cache_memory=memory, prefix_eviction=eviction, prefix_placement="branch")
    prompts = [text(60 + 8 * turn, seed) for seed in (1, 2) for turn in range(4)]
    assert sum(saved(llm, prompts)) >= 2 * 3 * 60
    assert llm.statistics.prefixes.evicted > 0
    assert_idle(llm)


def test_positions_that_were_planned_from_what_was_found() -> None:
    """Prompts part behind 130 tokens, and the one checkpoint that is allowed comes to lie there."""
    llm = engine("bamba", prefix_placement="dp_1", prefill_chunk=512)
    shared = text(130, 0)
    for seed in range(1, 12):
        served(llm, shared + text(70, seed))
    assert saved(llm, [shared + text(70, seed) for seed in (12, 13)]) == [128, 128]


def test_nothing_is_kept_without_a_cache() -> None:
    for settings in ({"prefix_cache": False}, {"prefix_placement": "no_cache"}):
        llm = engine("llama", **settings)
        for _ in range(2):
            served(llm, text(50, 0))
        assert llm.store.pool.num_held == 0
        assert llm.statistics.prefixes.lookups == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prefix_placement": "best"},
            "choose one of learned, grid, .*, block_N, ",
        ),
        ({"prefix_eviction": "random"}, "choose one of lru"),
    ],
)
def test_unknown_names(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine("llama", **settings)
