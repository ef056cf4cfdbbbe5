"""What is read on top of a live context is what a single pass over all tokens says."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cacheshrink_hybrid.evaluation.live_context import LiveContext
from tests.families.tiny_configs import tiny_model
from tests.models import logits_of, pair, random_ids

CASES = ["llama", "mistral-window", "granitemoehybrid", "qwen3_next", "jamba", "mamba2"]
LENGTH = 17


def in_one_pass(model: PreTrainedModel, ids: list[int], first: int) -> torch.Tensor:
    """Log-probabilities of `ids` from position `first` on, without a cache."""
    logits = logits_of(model, torch.tensor([ids]))[0, first - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[first:])[:, None])[:, 0]


def unknown_family() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "rotary_dim": 4,
    }
    config = AutoConfig.for_model("gptj", vocab_size=96, num_attention_heads=4, **sizes)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("chunk_length", [1, 4, 64])
@pytest.mark.parametrize("case", [*CASES, "unknown"])
def test_of_an_exact_model(case: str, chunk_length: int) -> None:
    model = unknown_family() if case == "unknown" else tiny_model(case)
    ids = random_ids(1, LENGTH)[0].tolist()
    for first in (1, 2, 9):
        context = LiveContext(model, ids[:first], chunk_length)
        found, likeliest = context.log_probabilities(ids[first:])
        torch.testing.assert_close(found, in_one_pass(model, ids, first), atol=1e-4, rtol=0)
        assert len(likeliest) == LENGTH - first


@pytest.mark.parametrize("case", [*CASES, "unknown"])
def test_continuations_leave_the_context_as_it_is(case: str) -> None:
    model = unknown_family() if case == "unknown" else tiny_model(case)
    ids = random_ids(1, LENGTH)[0].tolist()
    others = random_ids(1, LENGTH, seed=1)[0].tolist()
    context = LiveContext(model, ids[:6], 4)
    longer = context.extended(ids[6:10])
    context.log_probabilities(others)
    longer.greedy(3)
    context.extended(others)
    for one, first in ((context, 6), (longer, 10)):
        found, _ = one.log_probabilities(ids[first:])
        torch.testing.assert_close(found, in_one_pass(model, ids, first), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("converted", [False, True], ids=["source", "converted"])
def test_greedy_is_that_of_generate(case: str, converted: bool) -> None:
    settings = {"state_dtype": "int8"} if converted and case in ("qwen3_next", "mamba2") else {}
    if converted and case != "mamba2":
        settings |= {"ratio": 2.0, "cache_bits": "auto"}
    model = pair(case, **settings).converted if converted else tiny_model(case)
    ids = random_ids(1, LENGTH)
    new = LiveContext(model, ids[0].tolist(), LENGTH).greedy(6)
    due = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert new == due[0, LENGTH:].tolist()
    _, likeliest = LiveContext(model, ids[0].tolist(), LENGTH).log_probabilities(new)
    assert likeliest.all()


def test_greedy_stops_when_it_is_enough_and_at_the_end() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    context = LiveContext(model, random_ids(1, 5)[0].tolist())
    whole = context.greedy(6)
    assert len(whole) == 6
    assert context.greedy(6, lambda new: len(new) == 2) == whole[:2]
    model.generation_config.eos_token_id = [whole[3]]
    assert context.greedy(6) == whole[: whole.index(whole[3]) + 1]


def test_coded_rows_are_read_back() -> None:
    """What few bits cost is there at every length of chunks, and absent from a pass that stores
    nothing in full precision."""
    source, converted = pair("llama", ratio=4.0, cache_bits="auto").both()
    ids = random_ids(1, 40)[0].tolist()
    exact = in_one_pass(source, ids, 20)
    found = [
        LiveContext(converted, ids[:20], chunk_length).log_probabilities(ids[20:])[0]
        for chunk_length in (1, 7, 64)
    ]
    for one in found:
        assert (one - exact).abs().max() > 1e-3
        torch.testing.assert_close(one, found[0], atol=1e-4, rtol=0)
