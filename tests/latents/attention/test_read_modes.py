"""Keys in latents of each head's own, keys stored rotated, and keys that are decoupled from their
rotation: at full rank the source's logits."""

from __future__ import annotations

import copy

import pytest
import torch

from cacheshrink_hybrid import load_mla_model, save_mla_model
from cacheshrink_hybrid.errors import PlanError, UnsupportedModelError
from cacheshrink_hybrid.latents.fit.rotate import BLOCK_SLOTS
from tests.families.tiny_configs import tiny_model
from tests.models import (
    converted_copy,
    equal_pieces,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import assert_same_computation, assert_same_logits

LENGTH = 21
PER_HEAD = ["llama", "llama-mqa", "llama-dynamic", "gpt_neox", "phi3-partial", "qwen3", "olmo2"]
ROTATE = ["llama", "llama-biases", "llama-yarn", "gpt_neox", "phi3-partial", "mistral-window"]
ROTATE += ["smollm3", "gemma2", "gpt_oss", "falcon_h1"]
IN_BLOCKS = ["rotate", "rotate_joint"]
METHODS = ["per_head", *IN_BLOCKS, "decoupled_rope"]
DECOUPLED = ["llama", "llama-mqa", "llama-biases", "llama-yarn", "llama-llama3", "gpt_neox"]
DECOUPLED += ["phi3-partial", "mistral-window", "smollm3", "falcon_h1", "ministral3"]
NEIGHBOURS = ["glm", "cohere2", "ernie4_5", "gptj"]
"""Rotations of pairs (2i, 2i + 1), with angles in each of the forms that models give them."""
DECOUPLED += NEIGHBOURS
CASES = [(method, case) for method in IN_BLOCKS for case in ROTATE]
CASES += [("decoupled_rope", case) for case in DECOUPLED]
CASES += [("per_head", case) for case in PER_HEAD]

every_case = pytest.mark.parametrize("method, case", CASES)


@every_case
@pytest.mark.parametrize("length", [LENGTH, 3, 1])
def test_identity_in_pieces(method: str, case: str, length: int) -> None:
    models = pair(case, method)
    ids = random_ids(2, LENGTH)
    pieces = equal_pieces(LENGTH, length)
    found = logits_in_pieces(models.converted, ids, pieces)
    assert_same_logits(found, logits_of(models.source, ids))


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("case", ["llama", "llama-yarn", "gpt_neox", "mistral-window"])
def test_identity_beyond_a_block_of_rotated_keys(case: str, method: str) -> None:
    models = pair(case, method)
    ids = random_ids(1, 2 * BLOCK_SLOTS + 7)
    pieces = prefill_then_decode(ids.shape[1], BLOCK_SLOTS + 30)
    found = logits_in_pieces(models.converted, ids, pieces)
    assert_same_logits(found, logits_of(models.source, ids))


def test_identity_of_shared_modules_with_adapters() -> None:
    """Adapters of keys and values come before the rotation."""
    source = tiny_model("zamba2-adapters", use_mem_rope=True)
    ids = random_ids(2, LENGTH)
    for method in ("rotate_joint", "decoupled_rope"):
        converted = converted_copy(source, 1.0, method)
        found = logits_in_pieces(converted, ids, prefill_then_decode(LENGTH, 12))
        assert_same_logits(found, logits_of(source, ids))


@every_case
def test_left_padding(method: str, case: str) -> None:
    models = pair(case, method)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    outputs = [
        model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for model in models.both()
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("method", ["per_head", *IN_BLOCKS])
def test_coded_latents_are_read_as_their_decoded_selves(method: str) -> None:
    models = pair("llama", method, 4.0, cache_bits="auto")
    ids = random_ids(2, LENGTH)
    whole = logits_of(models.converted, ids)
    for pieces in (equal_pieces(LENGTH, 3), prefill_then_decode(LENGTH, 12)):
        found = logits_in_pieces(models.converted, ids, pieces)
        assert_same_logits(found, whole)


def test_layers_without_rotation_are_absorbed_beside_rotated_ones() -> None:
    modes = [latent.read_mode for latent in pair("smollm3", "rotate").plan.latents]
    assert set(modes) == {"rotate", "absorb"}


@pytest.mark.parametrize(
    "case, reason", [("qwen3", "normalised"), ("llama-dynamic", "depend on the length")]
)
def test_keys_that_cannot_be_stored_rotated_are_refused(case: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        converted_copy(tiny_model(case), 2.0, "rotate")


@pytest.mark.parametrize("method", METHODS)
def test_models_without_rotation_are_refused(method: str) -> None:
    with pytest.raises(PlanError, match="this model has none"):
        converted_copy(tiny_model("gpt2"), 2.0, method)


@pytest.mark.parametrize(
    "case, reason",
    [
        ("qwen3", "normalised"),
        ("llama-dynamic", "depend on the length"),
        ("phi3-longrope", "depend on the length"),
        ("gemma2", "softcap"),
        ("gpt_oss", "logits without a value"),
    ],
)
def test_keys_that_cannot_be_decoupled_are_refused(case: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"cannot be decoupled.*{reason}"):
        converted_copy(tiny_model(case), 2.0, "decoupled_rope")


@pytest.mark.parametrize("width", [2, 4, 8, None])
def test_decoupled_keys_below_full_width_do_not_depend_on_the_pieces(width: int | None) -> None:
    models = pair("llama", "decoupled_rope", 2.0, qk_rope_head_dim=width)
    ids = random_ids(2, LENGTH)
    whole = logits_of(models.converted, ids)
    for pieces in (equal_pieces(LENGTH, 1), prefill_then_decode(LENGTH, 12)):
        assert_same_logits(logits_in_pieces(models.converted, ids, pieces), whole)
    latents = models.plan.latents
    assert len({latent.rotary_frequencies for latent in latents}) == 1
    assert width in (None, latents[0].qk_rope_head_dim)
    assert models.plan.bytes_per_token <= models.plan.source_bytes_per_token / 2


@pytest.mark.parametrize("case", ["glm"])
def test_decoupled_neighbours_are_read_in_any_pieces_of_coded_rows(case: str) -> None:
    converted = pair(case, "decoupled_rope", 3.0, cache_bits="auto").converted
    ids = random_ids(2, LENGTH)
    whole = logits_in_pieces(converted, ids, [LENGTH])
    found = logits_in_pieces(converted, ids, prefill_then_decode(LENGTH, 12))
    assert_same_logits(found, whole)


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method: str, tmp_path) -> None:
    converted = pair("llama-biases", method, 4.0, cache_bits="auto").converted
    save_mla_model(converted, None, tmp_path / "model")
    loaded, _ = load_mla_model(tmp_path / "model")
    ids = random_ids(1, LENGTH)
    assert torch.equal(logits_of(loaded, ids), logits_of(converted, ids))


@pytest.mark.parametrize("method", METHODS)
def test_generation_modes_agree(method: str) -> None:
    converted = pair("llama", method).converted
    ids = random_ids(1, 12)
    plain = converted.generate(ids, max_new_tokens=8, do_sample=False)
    static = converted.generate(
        ids,
        max_new_tokens=8,
        do_sample=False,
        cache_implementation="static",
        disable_compile=True,
    )
    lookup = converted.generate(ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(plain, static)
    assert torch.equal(plain, lookup)


def test_gradients_reach_keys_of_each_head() -> None:
    converted = copy.deepcopy(pair("llama", "per_head").converted).train()
    converted(random_ids(2, 9), labels=random_ids(2, 9)).loss.backward()
    weight = converted.model.layers[0].self_attn.k_b_proj.weight
    assert weight.grad is not None and weight.grad.abs().min() > 0


def test_the_mean_of_rotated_keys_is_trained_as_that_of_rebuilt_ones() -> None:
    """At full rank both make the same keys, of which the bias is a part."""
    found = []
    for method in ("rotate", "per_head"):
        converted = copy.deepcopy(pair("llama", method).converted).train()
        converted(random_ids(2, 9), labels=random_ids(2, 9)).loss.backward()
        bias = converted.model.layers[0].self_attn.k_b_proj.bias
        assert bias.grad is not None and bias.grad.abs().max() > 0
        found.append(bias.grad)
    assert_same_computation(*found)
