"""Prompts that other caches of prefixes miss, by `generate()` with a `PrefixCache`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cacheshrink_hybrid.engine import PrefixCache
from tests.engine.failures import failing
from tests.engine.test_prefix_cache import GREEDY, batch, generated, prefixes_of
from tests.engine.test_prefix_reuse import ANYWHERE, QUICK, SETTINGS, model_of, text


def saved(prefixes: PrefixCache, prompts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens that each of these prompts took over; all outputs are those of plain calls."""
    counts = []
    for prompt in prompts:
        inputs, before = batch(list(prompt)), prefixes.statistics.saved_tokens
        found = prefixes.generate(**inputs, **GREEDY).tolist()
        assert found == generated(prefixes.model, inputs)
        counts.append(prefixes.statistics.saved_tokens - before)
        prefixes.store.check_integrity()
    assert prefixes.store.seq_ids == []
    return counts


@pytest.mark.parametrize("name", SETTINGS)
def test_a_prefix_shorter_than_a_piece(name: str) -> None:
    shared = text(40, 0)
    counts = saved(prefixes_of(model_of(name)), [shared + text(30, seed) for seed in (1, 2, 3, 4)])
    assert counts == ([0, 40, 40, 40] if name in ANYWHERE else [0, 0, 40, 40])


@pytest.mark.parametrize("name", SETTINGS)
def test_exact_repeats(name: str) -> None:
    """What is kept ends before the last token, which every call computes."""
    assert saved(prefixes_of(model_of(name)), [text(100, 0)] * 3) == [0, 99, 99]


@pytest.mark.parametrize("name", SETTINGS)
def test_one_edit_in_a_long_template(name: str) -> None:
    template = text(300, 0)
    edited = [[*template[:150], token, *template[151:]] for token in (5, 6, 7)]
    counts = saved(prefixes_of(model_of(name)), [template, *edited])
    assert counts == ([0, *[150] * 3] if name in ANYWHERE else [0, 128, 150, 150])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_long_prompts_that_part_far_from_any_piece(name: str) -> None:
    """1500 tokens alike, 700 of each prompt's own."""
    shared = text(1500, 0)
    prefixes = prefixes_of(model_of(name), prefill_chunk=512)
    counts = saved(prefixes, [shared + text(700, seed) for seed in (1, 2, 3)])
    assert counts == ([0, 1500, 1500] if name in ANYWHERE else [0, 1024, 1500])


@pytest.mark.parametrize("name", ["llama", "bamba", "gemma3_text"])
def test_two_long_conversations_in_room_for_little_more_than_one(name: str) -> None:
    roomy = prefixes_of(model_of(name))
    layout = roomy.store.layout
    frames = roomy.store.need(430) * 5 // 4 + 4 * layout.state.num_frames
    memory = (frames + 1) * layout.frame_bytes
    prefixes = prefixes_of(model_of(name), max_bytes=memory, placement="grid")
    chats = [text(450, seed) for seed in (1, 2)]
    prompts = [chat[: 300 + 30 * turn] for turn in range(5) for chat in chats]
    assert sum(saved(prefixes, prompts)) > 0.15 * sum(map(len, prompts))
    assert prefixes.statistics.evicted > 0


@pytest.mark.parametrize("name", QUICK)
def test_what_was_interrupted_is_gone_on_with(name: str) -> None:
    """Two pieces of a prompt are computed, and the third one is broken off."""
    model, prompt = model_of(name), text(300, 0)
    prefixes = prefixes_of(model)
    broken = failing(model, KeyboardInterrupt(), calls=(2,))
    with broken, pytest.raises(KeyboardInterrupt):
        prefixes.generate(**batch(prompt), **GREEDY)
    assert prefixes.store.seq_ids == []
    assert saved(prefixes, [prompt]) == [128]
