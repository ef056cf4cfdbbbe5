"""What a converted model keeps of its source, and the way back to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from transformers import PreTrainedModel

from cacheshrink_hybrid import compression_disabled
from cacheshrink_hybrid.errors import NotSupportedError, UnsupportedModelError
from cacheshrink_hybrid.model.original_model import keep_source_values
from tests.families.tiny_configs import CASES
from tests.models import (
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


def train_a_step(model: PreTrainedModel) -> None:
    torch.manual_seed(0)  # for dropout
    ids = random_ids(2, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    model.train()
    model(ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("case", ["llama", "gpt2", "granitemoehybrid"])
def test_the_source_is_gone_after_training_by_a_loop_of_ones_own(case: str) -> None:
    source, converted = with_source(case)
    model = copy.deepcopy(converted)
    train_a_step(model)
    with (
        pytest.raises(NotSupportedError, match=r"\d+ weights .* were changed .*keep_source_values"),
        compression_disabled(model),
    ):
        pass
    compressed = logits_of(model, random_ids(1, NUM_TOKENS))
    kept = copy.deepcopy(converted)
    keep_source_values(kept, kept.parameters())
    train_a_step(kept)
    ids = random_ids(1, NUM_TOKENS)
    assert torch.equal(logits_of(kept, ids), compressed)
    with compression_disabled(kept):
        assert torch.equal(logits_of(kept, ids), logits_of(source, ids))
    assert torch.equal(logits_of(kept, ids), compressed)


def first_mlp_moves(model: PreTrainedModel) -> None:
    model.model.layers[0].mlp.up_proj.weight.data += 1e-3


def first_encoder_is_zero(model: PreTrainedModel) -> None:
    model.model.layers[0].self_attn.kv_a_proj.weight.data.zero_()


CHANGES: dict[str, tuple[Callable[[PreTrainedModel], object], bool]] = {
    "nothing": (lambda model: None, False),
    "half": (lambda model: model.half(), False),
    "bfloat16 and back": (lambda model: model.bfloat16().float(), False),
    "more tokens": (lambda model: model.resize_token_embeddings(128), False),
    "own weights": (first_encoder_is_zero, False),
    "equal state": (lambda model: model.load_state_dict(model.state_dict()), False),
    "through data": (first_mlp_moves, True),
    "fewer tokens": (lambda model: model.resize_token_embeddings(90), True),
    "a norm": (lambda model: model.model.norm.weight.data.mul_(1.01), True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_counts_as_changed(name: str) -> None:
    change, refused = CHANGES[name]
    model = copy.deepcopy(with_source("llama")[1])
    change(model)
    expectation = pytest.raises(NotSupportedError) if refused else nullcontext()
    with expectation, compression_disabled(model):
        logits_of(model, random_ids(1, 8))


def test_nothing_to_switch_back_to() -> None:
    for model in pair("llama").both():
        with (
            pytest.raises(UnsupportedModelError, match="store_original_weights=True"),
            compression_disabled(model),
        ):
            pass
