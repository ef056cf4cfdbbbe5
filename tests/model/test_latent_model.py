"""A converted model is a model: it copies, trains and counts its parameters."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_of, pair, random_ids

NUM_TOKENS = 22


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
