"""Requests of all kinds, in a pool that is too small for them, against engines without prefixes."""

from __future__ import annotations

import numpy as np
import pytest

from cacheshrink_hybrid.engine import LLM, SamplingParams
from tests.engine.idle import assert_idle
from tests.engine.test_prefix_reuse import engine, served

NUM_REQUESTS = 40
NUM_TEXTS = 5


def prompts(random: np.random.Generator) -> list[list[int]]:
    """Texts that begin alike, cut anywhere, some with an end of their own."""
    common = random.integers(3, 90, 150)
    texts = [
        np.concatenate([common[:shared], random.integers(3, 90, 150 - shared)])
        for shared in random.integers(0, 120, NUM_TEXTS)
    ]
    found = []
    for _ in range(NUM_REQUESTS):
        text = texts[random.integers(NUM_TEXTS)][: random.integers(1, 130)]
        end = random.integers(3, 90, random.integers(0, 12))
        found.append(np.concatenate([text, end]).tolist())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "placement"),
    [
        ("llama", "grid"),
        ("bamba", "grid"),
        ("bamba", "block_10"),
        ("gemma3_text", "grid"),
        ("exact", "block_10"),
    ],
)
def test_outputs_are_those_of_a_cold_engine(name: str, placement: str) -> None:
    random = np.random.default_rng(len(name) + len(placement))
    cold = engine(name, prefix_cache=False)
    layout = cold.store.layout
    frames = 2 * cold.store.need(150) + 2 * layout.state.num_frames + 4
    llm = engine(
        name,
        cache_memory=(frames + 1) * layout.frame_bytes,
        prefill_chunk=16,
        prefix_placement=placement,
        max_batch=4,
    )
    wishes, due = {}, {}
    for number, prompt in enumerate(prompts(random)):
        wishes[number] = SamplingParams(max_tokens=int(random.integers(1, 9)), ignore_eos=True)
        due[number] = (prompt, served(cold, prompt, wishes[number]))
    waiting = list(due)
    found: dict[int, tuple[int, ...]] = {}
    steps = aborted = 0
    while waiting or llm.has_requests:
        while waiting and random.random() < 0.5:
            number = waiting.pop(0)
            llm.add_request(due[number][0], wishes[number], request_id=number)
        if random.random() < 0.03 and (running := running_requests(llm)):
            llm.abort(running[random.integers(len(running))])
            aborted += 1
        for output in llm.step():
            if output.finished:
                found[output.request_id] = output.token_ids
        steps += 1
        if steps % 10 == 0:
            llm.store.check_integrity()
    assert len(found) == NUM_REQUESTS - aborted
    for number, tokens in found.items():
        assert tokens == due[number][1], (number, len(due[number][0]))
    statistics = llm.statistics.prefixes
    assert statistics.hits > 3
    assert statistics.evicted > 10
    assert_idle(llm)


def running_requests(llm: LLM) -> list:
    return [request.request_id for request in llm._scheduler.requests]
