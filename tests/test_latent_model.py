"""What a converted model keeps of its source, and the way back to it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid import CompressionPlan, compression_disabled, plan_of
from cacheshrink_hybrid.errors import UnsupportedModelError
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import (
    converted_copy,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)

NUM_TOKENS = 22


def with_source(case: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    return pair(case, "auto", ratio=4.0, metric="activation", store_original_weights=True).both()


@pytest.mark.parametrize("case", CASES)
def test_compression_disabled(case: str) -> None:
    source, converted = with_source(case)
    ids = random_ids(2, NUM_TOKENS)
    pieces = prefill_then_decode(NUM_TOKENS, 15)
    compressed = logits_of(converted, ids)
    with compression_disabled(converted) as model:
        assert model is converted
        assert torch.equal(logits_of(model, ids), logits_of(source, ids))
        assert torch.equal(
            logits_in_pieces(model, ids, pieces), logits_in_pieces(source, ids, pieces)
        )
        settings = {"max_new_tokens": 5, "do_sample": False}
        assert torch.equal(model.generate(ids, **settings), source.generate(ids, **settings))
    assert torch.equal(logits_of(converted, ids), compressed)
    assert not torch.equal(compressed, logits_of(source, ids))


def test_compression_is_back_after_an_error() -> None:
    _, converted = with_source("llama")
    ids = random_ids(1, NUM_TOKENS)
    expected = logits_of(converted, ids)
    with pytest.raises(KeyError), compression_disabled(converted):
        raise KeyError
    assert torch.equal(logits_of(converted, ids), expected)


def test_nothing_to_switch_back_to() -> None:
    for model in pair("llama").both():
        with (
            pytest.raises(UnsupportedModelError, match="store_original_weights=True"),
            compression_disabled(model),
        ):
            pass


def test_source_has_no_plan() -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM is not converted; run"):
        plan_of(tiny_model("llama"))


def test_plan_travels_in_the_config() -> None:
    converted = pair("llama", "auto", ratio=4.0).converted
    plan = plan_of(converted)
    assert isinstance(plan, CompressionPlan)
    assert plan.compression_ratio >= 4.0
    assert plan_of(copy.deepcopy(converted)) == plan


def test_deep_copy_is_independent() -> None:
    converted = pair("llama", "auto", ratio=4.0, metric="activation").converted
    ids = random_ids(1, NUM_TOKENS)
    expected = logits_of(converted, ids)
    twin = copy.deepcopy(converted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(converted, ids), expected)
    assert float(logits_of(twin, ids).abs().max()) == 0


@pytest.mark.parametrize("case", ["llama", "gpt2", "zamba2"])
def test_fewer_parameters(case: str) -> None:
    source, converted = pair(case, "auto", ratio=4.0, metric="activation").both()
    assert converted.num_parameters() < source.num_parameters()


def test_shared_bases_stay_shared_through_training() -> None:
    model = converted_copy(tiny_model("llama"), 4.0, "xkv", metric="activation").train()
    weights = {id(layer.self_attn.k_b_proj.weight) for layer in model.model.layers}
    assert len(weights) == 1
    ids = random_ids(1, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    first, *others = (layer.self_attn.k_b_proj.weight for layer in model.model.layers)
    assert all(torch.equal(first, other) for other in others)
