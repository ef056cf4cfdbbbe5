"""Latent attention gives one result however it is fed and whichever way it is computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.latents.attention import dense_read
from cacheshrink_hybrid.latents.attention.expanded_attention import attend_expanded
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.families.tiny_configs import CASES, tiny_config
from tests.models import (
    Pair,
    converted_copy,
    equal_pieces,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import SAME_COMPUTATION, assert_same_computation, largest_difference

NUM_TOKENS = 22
CONTINUING = [case for case in CASES if model_spec(tiny_config(case)).continues_in_pieces]
WHOLE_PREFILL = [case for case in CASES if case not in CONTINUING]
# Softcap, sinks, windows, absorbed keys, key norms of both kinds, gates, multipliers, adapters.
OPTION_CASES = (
    "llama",
    "gpt2",
    "gemma2",
    "gpt_oss",
    "mistral-window",
    "qwen3",
    "olmo2",
    "qwen3_next",
    "falcon_h1",
    "zamba2-adapters",
)
EXPAND, READ = 0, 10_000
"""Settings of MAX_DECODE_TOKENS that always expand keys and values, and that never do."""


def compressed_pair(case: str) -> Pair:
    return pair(case, "auto", ratio=4.0, metric="activation")


def compressed(case: str) -> PreTrainedModel:
    return compressed_pair(case).converted


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch):
    """Choose one way of computing, whatever the number of tokens."""
    return lambda limit: monkeypatch.setattr(dense_read, "MAX_DECODE_TOKENS", limit)


def assert_pieces_do_not_matter(case: str, pieces: list[int]) -> None:
    """More than the source's recurrent layers let them matter."""
    ids = random_ids(2, NUM_TOKENS)
    source, converted = (
        largest_difference(logits_in_pieces(model, ids, pieces), logits_of(model, ids))
        for model in compressed_pair(case).both()
    )
    assert converted < max(SAME_COMPUTATION, 2 * source)


@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("case", CONTINUING)
def test_pieces_do_not_matter(case: str, length: int) -> None:
    """Every query reads latents, also those of its own piece."""
    assert_pieces_do_not_matter(case, equal_pieces(NUM_TOKENS, length))


@pytest.mark.parametrize("case", WHOLE_PREFILL)
def test_decoding_does_not_matter(case: str) -> None:
    assert_pieces_do_not_matter(case, prefill_then_decode(NUM_TOKENS, 9))


@pytest.mark.parametrize("case", CASES)
def test_reading_and_expanding_agree(case: str, always) -> None:
    model, ids = compressed(case), random_ids(2, NUM_TOKENS)
    always(READ)
    read = logits_of(model, ids)
    always(EXPAND)
    assert_same_computation(read, logits_of(model, ids))


@pytest.mark.parametrize("case", CONTINUING)
def test_reading_and_expanding_agree_on_a_cache(case: str, always) -> None:
    model, ids = compressed(case), random_ids(2, NUM_TOKENS)
    pieces = [9, 5, 1, 1, 4, 2]
    always(READ)
    read = logits_in_pieces(model, ids, pieces)
    always(EXPAND)
    assert_same_computation(read, logits_in_pieces(model, ids, pieces))


def lower_left(num_new: int, num_keys: int) -> Tensor:
    """Who sees whom: the last query sees all keys."""
    return torch.ones(num_new, num_keys, dtype=torch.bool).tril(num_keys - num_new)


def masks(num_new: int, num_keys: int) -> dict[str, Tensor | None]:
    visible = lower_left(num_new, num_keys)
    padded = visible & (torch.arange(num_keys) >= 2)
    per_row = torch.stack([visible, padded])[:, None]
    additive = torch.zeros(per_row.shape).masked_fill(~per_row, torch.finfo(torch.float32).min)
    return {
        "none": None,
        "bool": visible[None, None],
        "bool-per-row": per_row,
        "additive": additive,
        "bool-one-row-sees-nothing": per_row & (torch.arange(num_new) > 0)[:, None],
        "longer-than-the-keys": torch.cat([per_row, per_row], dim=-1),
    }


def attention_of(case: str, implementation: str) -> LatentAttention:
    model = copy.deepcopy(compressed(case))
    model.set_attn_implementation(implementation)
    return next(m for m in model.modules() if isinstance(m, LatentAttention))


@pytest.mark.parametrize("mask_name", masks(1, 1))
@pytest.mark.parametrize(("num_new", "num_keys"), [(5, 5), (3, 11), (1, 7)])
@pytest.mark.parametrize("case", OPTION_CASES)
@torch.no_grad()
def test_masks(case: str, num_new: int, num_keys: int, mask_name: str) -> None:
    attention = attention_of(case, "eager")
    mask = masks(num_new, num_keys)[mask_name]
    head = attention.head
    query = torch.randn(2, head.num_attention_heads, num_new, head.head_dim)
    latent = torch.randn(2, num_keys, head.plan.kv_lora_rank)
    angles = None
    if head.rotary is not None:
        angles = head.rotary.window_angles(num_keys - num_new, 0, num_keys, query)[1]
    read, read_weights = dense_read.read_latents(head, query, latent, mask, angles, 0)
    keys_values = dense_read.expanded_context(head, latent, angles, 0)
    expanded, weights = attend_expanded(attention, head, query, *keys_values, mask)
    expanded = expanded.flatten(2)
    assert bool(torch.isfinite(read).all())
    assert bool(torch.isfinite(expanded).all())
    assert_same_computation(read, expanded)
    assert_same_computation(read_weights, weights)
    if mask is None or mask.dtype == torch.bool:
        shown = lower_left(num_new, num_keys) if mask is None else mask[..., :num_keys]
        sees_nothing = ~shown.any(-1, keepdim=True)
        hidden = weights.masked_fill(shown | sees_nothing, 0)
        assert float(hidden.abs().max()) == 0


@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3", "mistral-window"])
@torch.no_grad()
def test_sdpa_and_a_query_that_sees_nothing(case: str) -> None:
    """Left padding makes such rows; what they give is never read, but must not be NaN."""
    model = copy.deepcopy(compressed(case))
    model.set_attn_implementation("sdpa")
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for piece in (12, 3):
        cache = make_cache(model)
        for start in range(0, 12, piece):
            positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, start : start + piece]
            logits = model(
                ids[:, start : start + piece],
                attention_mask=mask[:, : start + piece],
                position_ids=positions,
                past_key_values=cache,
            ).logits
            assert bool(torch.isfinite(logits).all())


def gradients(model: PreTrainedModel, ids: Tensor) -> dict[str, Tensor]:
    """Gradients of the loss with respect to all parameters and the input embeddings."""
    torch.manual_seed(0)  # of dropout
    model.zero_grad()
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeddings, labels=ids, use_cache=False).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {**found, "inputs": embeddings.grad}


@pytest.mark.parametrize("case", OPTION_CASES)
def test_gradients_flow_and_do_not_depend_on_the_way(case: str, always) -> None:
    # Every rank above one, so that there is something to learn in each projection.
    source = pair(case).source
    model = converted_copy(source, 1.5, "auto", metric="activation")
    ids = random_ids(2, 12)
    always(READ)
    read = gradients(model, ids)
    always(EXPAND)
    expanded = gradients(model, ids)
    assert read.keys() <= expanded.keys()
    for name in expanded.keys() - read.keys():  # what all scores of a query have in common
        assert name.endswith("k_b_proj.bias")
        assert float(expanded[name].abs().max()) < 1e-6
    for kind in ("kv_a_proj.weight", "k_b_proj.weight", "v_b_proj.weight", "inputs"):
        names = [name for name in read if name.endswith(kind)]
        assert names
        for name in names:
            assert float(read[name].abs().max()) > 0, name
    for name, gradient in read.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert_same_computation(gradient / scale, expanded[name] / scale)


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2"])
def test_training_step(case: str) -> None:
    """In training mode, with gradient checkpointing and without."""
    model = converted_copy(pair(case).source, 2.0, metric="activation").train()
    ids = random_ids(2, 12)
    plain = gradients(model, ids)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_computation(gradients(model, ids)["inputs"], plain["inputs"])


def test_arguments_by_position_are_refused() -> None:
    attention = attention_of("llama", "sdpa")
    with pytest.raises(TypeError, match="by name, except hidden_states"):
        attention(torch.zeros(1, 1, 32), None)
