"""Encoder-decoder families at full rank compute what their sources compute, coded ones agree with
their own single pass, and both remember an encoder's output once."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel

from cacheshrink_hybrid import convert_to_mla, load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import cache_bytes, make_cache
from cacheshrink_hybrid.caches.encoder_decoder import dense_pair
from cacheshrink_hybrid.families import ENCODER_DECODERS, decoder_config, model_spec
from cacheshrink_hybrid.latents.attention.cross import CrossAttention
from tests.families.encoder_configs import CASES, encoder_inputs, pairs, tiny_config, tiny_model
from tests.models import equal_pieces, prefill_then_decode, random_ids
from tests.tolerances import assert_same_logits, largest_difference

NUM_TOKENS, NUM_PREFILL, BATCH = 27, 13, 3
METHOD_OF_CASE = dict(zip(CASES, ["joint", "separate"] * len(CASES), strict=False))
CODE_EDGE = 5e-3
"""As in `test_rows.py`."""

every_case = pytest.mark.parametrize("case", CASES)


def converted(source: PreTrainedModel, **settings: Any) -> PreTrainedModel:
    settings = {"compression_ratio": 1.0, "use_calibration": False, **settings}
    model, _ = convert_to_mla(source, inplace=False, verbose=False, **settings)
    return model


@cache
def full_rank(case: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    source = tiny_model(case)
    return source, converted(source, compression_method=METHOD_OF_CASE[case], cache_bits=16)


@cache
def coded(case: str) -> PreTrainedModel:
    """Few-bit rows of everything, and exact ones of the decoder's last few tokens."""
    source = tiny_model(case)
    settings = {"compression_ratio": 4.0, "metric": "activation", "exact_window": 4}
    inputs = pairs(source, 6)
    return converted(
        source, use_calibration=True, calibration_inputs=inputs, exact_sinks=0, **settings
    )


@torch.no_grad()
def logits_of(
    model: PreTrainedModel,
    given: dict[str, Tensor],
    ids: Tensor,
    pieces: list[int] | None = None,
    cache: EncoderDecoderCache | None = None,
) -> Tensor:
    """In one pass without a cache, or in pieces through one; the encoder runs once."""
    if pieces is None:
        return model(**given, decoder_input_ids=ids, use_cache=False).logits
    outputs = model.get_encoder()(**given)
    mask = {name: x for name, x in given.items() if name == "attention_mask"}
    made = make_cache(model) if cache is None else cache
    found = []
    for piece in ids.split(pieces, dim=1):
        output = model(
            encoder_outputs=outputs,
            decoder_input_ids=piece,
            use_cache=True,
            **mask,
            **{cache_argument(model): made},
        )
        found.append(output.logits)
    return torch.cat(found, dim=1)


def test_every_family_has_a_case() -> None:
    assert {tiny_config(case).model_type for case in CASES} == {*ENCODER_DECODERS}


@every_case
def test_a_decoder_and_its_encoder_are_told_apart(case: str) -> None:
    spec = model_spec(tiny_config(case))
    assert spec.cross is not None
    assert len(spec.layers) == len(spec.cross.layers) == 2
    width = 48 if case == "t5-wide" else 32
    assert spec.bytes_per_token == spec.cross.bytes_per_token == 2 * 2 * width * 2


@every_case
def test_identity(case: str) -> None:
    source, model = full_rank(case)
    given, ids = encoder_inputs(source, BATCH), random_ids(BATCH, NUM_TOKENS)
    due = logits_of(source, given, ids)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(logits_of(model, given, ids), due)
    assert_same_logits(logits_of(source, given, ids, pieces), due)
    assert_same_logits(logits_of(model, given, ids, pieces), due)
    assert_same_logits(logits_of(model, given, ids, equal_pieces(NUM_TOKENS, 5)), due)
    dense = dense_pair(decoder_config(model.config))
    assert_same_logits(logits_of(model, given, ids, pieces, dense), due)


@pytest.mark.parametrize("case", ["bart", "t5", "umt5", "whisper"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(case: str, implementation: str) -> None:
    source = tiny_model(case, attn_implementation=implementation)
    model = converted(source, cache_bits=16)
    given, ids = encoder_inputs(source, BATCH), random_ids(BATCH, NUM_TOKENS)
    due = logits_of(source, given, ids)
    assert_same_logits(logits_of(model, given, ids), due)
    assert_same_logits(logits_of(model, given, ids, equal_pieces(NUM_TOKENS, 4)), due)
    if implementation == "eager":
        asked = {"decoder_input_ids": ids, "output_attentions": True}
        with torch.no_grad():
            found, expected = (m(**given, **asked) for m in (model, source))
        for name in ("decoder_attentions", "cross_attentions"):
            assert len(found[name]) == len(expected[name]) == 2
            for actual, probabilities in zip(found[name], expected[name], strict=True):
                assert_same_logits(actual, probabilities)


@every_case
def test_greedy_and_beams_over_padded_inputs(case: str) -> None:
    source, model = full_rank(case)
    given = encoder_inputs(source, BATCH)
    for beams in (1, 3):
        settings = {"num_beams": beams, "max_new_tokens": 6, "do_sample": False}
        assert torch.equal(
            model.generate(**given, **settings), source.generate(**given, **settings)
        )


@every_case
def test_coded_decoding_agrees_with_one_pass(case: str) -> None:
    model = coded(case)
    given, ids = encoder_inputs(model, BATCH), random_ids(BATCH, NUM_TOKENS)
    due = logits_of(model, given, ids)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert largest_difference(logits_of(model, given, ids, pieces), due) < CODE_EDGE


@every_case
def test_a_saved_model_generates_as_before(case: str, tmp_path: Path) -> None:
    model = coded(case)
    save_mla_model(model, None, tmp_path)
    loaded, _ = load_mla_model(tmp_path)
    assert plan_of(loaded) == plan_of(model)
    given = encoder_inputs(model, BATCH)
    settings = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(loaded.generate(**given, **settings), model.generate(**given, **settings))


@pytest.mark.parametrize("case", ["bart", "t5", "umt5", "whisper"])
def test_an_output_of_the_encoder_is_remembered_once(case: str) -> None:
    model = copy.deepcopy(coded(case))
    calls = []
    for module in model.modules():
        if isinstance(module, CrossAttention):
            module.kv_a_proj.register_forward_hook(lambda *call: calls.append(call[2].shape))
    given = encoder_inputs(model, 2)
    made = make_cache(model)
    name = {cache_argument(model): made}
    model.generate(**given, max_new_tokens=7, min_new_tokens=7, do_sample=False, **name)
    num_encoded = 24 if case == "whisper" else 13
    assert [shape[:2] for shape in calls] == [(2, num_encoded)] * 2
    assert made.cross_attention_cache.get_seq_length() == num_encoded
    assert made.self_attention_cache.get_seq_length() == 7


@pytest.mark.parametrize("case", ["bart", "t5", "umt5", "whisper"])
def test_bytes_are_those_of_the_plan(case: str) -> None:
    model = coded(case)
    plan = plan_of(model)
    assert plan.cross is not None
    assert plan.compression_ratio >= 4 and plan.cross.compression_ratio >= 4
    given, ids = encoder_inputs(model, BATCH), random_ids(BATCH, NUM_TOKENS)
    pair = dense_pair(decoder_config(model.config))
    logits_of(model, given, ids, [NUM_TOKENS], pair)
    num_encoded = 24 if case == "whisper" else 13
    of_encoder = cache_bytes(pair.cross_attention_cache).kv
    assert of_encoder == BATCH * num_encoded * plan.cross.bytes_per_token
    of_rows = sum(layer.keys.nbytes for layer in pair.self_attention_cache.layers)
    assert of_rows == BATCH * NUM_TOKENS * plan.bytes_per_token
    own = cache_bytes(pair.self_attention_cache).kv
    assert cache_bytes(pair).total == own + of_encoder > of_rows + of_encoder
    pooled = make_cache(model)
    logits_of(model, given, ids, [NUM_TOKENS], pooled)
    assert pooled.cross_attention_cache.memory().kv >= of_encoder


@pytest.mark.parametrize("case", ["t5", "umt5"])
def test_a_decoder_may_be_deeper_than_its_encoder(case: str) -> None:
    source = tiny_model(case, num_layers=1, num_decoder_layers=2)
    model = converted(source, cache_bits=16)
    given, ids = encoder_inputs(source, BATCH), random_ids(BATCH, NUM_TOKENS)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    due = logits_of(source, given, ids)
    assert_same_logits(logits_of(model, given, ids, pieces), due)
    settings = {"max_new_tokens": 6, "do_sample": False}
    own = {cache_argument(source): make_cache(source)}
    expected = source.generate(**given, **settings, **own)
    for implementation in (None, "dynamic"):
        choice = {"cache_implementation": implementation, **settings}
        assert torch.equal(model.generate(**given, **choice), expected)


@pytest.mark.parametrize("case", ["t5", "umt5"])
def test_padding_of_the_decoder_is_hidden(case: str) -> None:
    source, model = full_rank(case)
    given, ids = encoder_inputs(source, 2), random_ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    given["decoder_attention_mask"] = mask
    with torch.no_grad():
        found, due = (m(**given, decoder_input_ids=ids).logits for m in (model, source))
    assert_same_logits(found[0], due[0])
    assert_same_logits(found[1, 4:], due[1, 4:])


def test_beams_share_what_they_remember() -> None:
    model = coded("bart")
    given = encoder_inputs(model, 1)
    logits_of(model, given, random_ids(1, 5), [5], pair := make_cache(model))
    of_one = cache_bytes(pair).total
    pair.batch_repeat_interleave(4)
    assert cache_bytes(pair).total == of_one
    assert pair.cross_attention_cache.layers[0].keys.shape[0] == 4


@pytest.mark.parametrize("case", ["bart", "t5", "umt5", "whisper"])
def test_compression_is_switched_off(case: str) -> None:
    from cacheshrink_hybrid import compression_disabled

    source = tiny_model(case)
    model = converted(source, compression_ratio=4.0, store_original_weights=True)
    given, ids = encoder_inputs(source, BATCH), random_ids(BATCH, NUM_TOKENS)
    due = logits_of(source, given, ids)
    with compression_disabled(model):
        assert_same_logits(logits_of(model, given, ids), due)
        pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
        assert_same_logits(logits_of(model, given, ids, pieces), due)
    assert largest_difference(logits_of(model, given, ids), due) > 1e-2


def test_layers_share_bases_with_their_own_kind() -> None:
    source = tiny_model("whisper")
    model = converted(source, compression_method="xkv", xkv_skip_early_layers=0)
    layers = model.model.decoder.layers
    for name in ("self_attn", "encoder_attn"):
        first, second = (getattr(layer, name).k_b_proj.weight for layer in layers)
        assert first is second
    assert layers[0].self_attn.k_b_proj.weight is not layers[0].encoder_attn.k_b_proj.weight
    given, ids = encoder_inputs(source, BATCH), random_ids(BATCH, NUM_TOKENS)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(logits_of(model, given, ids, pieces), logits_of(source, given, ids))
