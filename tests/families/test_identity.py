"""Every family at full rank computes what its source computes, in every way of feeding it."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.families import model_spec
from tests.families.tiny_configs import AXES, CASES, tiny_config, tiny_model
from tests.models import (
    Pair,
    assert_same_padded_generation,
    calibration_ids,
    converted_copy,
    equal_pieces,
    logits_in_pieces,
    logits_of,
    pair,
    prefill_then_decode,
    random_ids,
)
from tests.tolerances import assert_same_logits, assert_within_bfloat16_noise

# Longer than every window in the table (6 and 8), and than the pieces that are fed.
NUM_TOKENS = 37
NUM_PREFILL = 21

METHOD_OF_CASE = dict(zip(CASES, ["joint", "separate"] * len(CASES), strict=False))
CONTINUING = [case for case in CASES if model_spec(tiny_config(case)).continues_in_pieces]
XKV_CASES = ("llama", "gpt2", "gemma2", "qwen3", "zamba2", "olmo_hybrid")
# No mixture of experts: a router that changes its mind is no rounding error.
BFLOAT16_CASES = ("llama", "qwen3", "gpt2", "gemma2", "bamba", "qwen3_5_text")

every_case = pytest.mark.parametrize("case", CASES)


def of_case(case: str) -> Pair:
    return pair(case, METHOD_OF_CASE[case])


@pytest.mark.parametrize("method", ["joint", "separate"])
@every_case
def test_forward(case: str, method: str) -> None:
    source, converted = pair(case, method).both()
    ids = random_ids(2, NUM_TOKENS)
    assert_same_logits(logits_of(converted, ids), logits_of(source, ids))


@pytest.mark.parametrize("method", ["joint", "separate"])
@every_case
def test_prefill_and_decode(case: str, method: str) -> None:
    source, converted = pair(case, method).both()
    ids = random_ids(2, NUM_TOKENS)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(
        logits_in_pieces(converted, ids, pieces), logits_in_pieces(source, ids, pieces)
    )


@pytest.mark.parametrize(
    ("case", "length"),
    [*itertools.product(CONTINUING, (3, 16)), *((case, 1) for case in CONTINUING if case in AXES)],
)
def test_continuation_in_pieces(case: str, length: int) -> None:
    source, converted = of_case(case).both()
    ids = random_ids(2, NUM_TOKENS)
    pieces = equal_pieces(NUM_TOKENS, length)
    assert_same_logits(
        logits_in_pieces(converted, ids, pieces), logits_in_pieces(source, ids, pieces)
    )


@pytest.mark.parametrize("case", CONTINUING)
def test_pieces_without_positions(case: str) -> None:
    """Tokens on a cache lie behind it, also where the source would count from 0 (bamba)."""
    converted = of_case(case).converted
    ids = random_ids(2, NUM_TOKENS)
    cache, pieces = make_cache(converted), []
    for part in ids.split(NUM_PREFILL, dim=1):
        given = {cache_argument(converted.forward): cache}
        pieces.append(converted(part, **given, use_cache=True).logits)
    assert_same_logits(torch.cat(pieces, dim=1), logits_of(converted, ids))


@every_case
def test_exact_tokens(case: str) -> None:
    """Where all that is read is exact, few-bit rows do not show: what is left is the rounding of
    keys and values to 16 bits."""
    layers = model_spec(tiny_config(case)).attention_layers
    windows = [x.attention.sliding_window for x in layers if x.attention]
    count = min([window - 1 for window in windows if window], default=24)
    settings = {"cache_bits": "auto", "exact_sinks": 0 if all(windows) else 2}
    source, converted = pair(case, ratio=8.0, exact_window=count, **settings).both()
    coded = pair(case, ratio=8.0, exact_window=0, **settings).converted
    ids = random_ids(2, count)
    due = logits_of(source, ids)
    rounding = 0.01 * due.std()
    pieces = prefill_then_decode(count, count // 2)
    assert (logits_of(converted, ids) - due).abs().max() < rounding
    assert (logits_in_pieces(converted, ids, pieces) - due).abs().max() < rounding
    assert (logits_of(coded, ids) - due).abs().max() > rounding


@pytest.mark.parametrize("case", XKV_CASES)
def test_shared_bases(case: str) -> None:
    source, converted = pair(case, "xkv", cross_layer_group_size=2).both()
    ids = random_ids(2, NUM_TOKENS)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_same_logits(logits_of(converted, ids), logits_of(source, ids))
    assert_same_logits(
        logits_in_pieces(converted, ids, pieces), logits_in_pieces(source, ids, pieces)
    )


@every_case
def test_left_padded_batch(case: str) -> None:
    source, converted = of_case(case).both()
    ids = random_ids(3, 15)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    mask[1, :1] = 0
    assert_same_padded_generation(source, converted, ids, mask, 8)


@every_case
def test_beams(case: str) -> None:
    source, converted = of_case(case).both()
    ids = random_ids(2, 12)
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "do_sample": False}
    expected, actual = source.generate(ids, **settings), converted.generate(ids, **settings)
    assert torch.equal(actual, expected)


@every_case
def test_sampling(case: str) -> None:
    tokens = []
    for model in of_case(case).both():
        torch.manual_seed(5)
        tokens.append(model.generate(random_ids(2, 12), max_new_tokens=8, do_sample=True))
    assert torch.equal(tokens[1], tokens[0])


@every_case
def test_attention_probabilities(case: str) -> None:
    """With eager attention both give the same probabilities, in a full pass and in a decode."""
    source, converted = (copy.deepcopy(model) for model in of_case(case).both())
    ids = random_ids(2, NUM_PREFILL)
    for model in (source, converted):
        model.set_attn_implementation("eager")
    recorded = []
    for model in (source, converted):
        with torch.no_grad():
            prefill = model(ids, use_cache=True, output_attentions=True)
        step = model.generate(
            ids,
            max_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_attentions=True,
        )
        recorded.append([prefill.attentions, *step.attentions])
    for expected_pass, actual_pass in zip(*recorded, strict=True):
        assert len(actual_pass) == len(expected_pass)
        for actual, expected in zip(actual_pass, expected_pass, strict=True):
            if expected is None:
                assert actual is None
                continue
            assert_same_logits(actual, expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", ["llama", "mistral-window", "gemma2", "gpt_oss", "qwen3_next"])
def test_attention_implementations(case: str, implementation: str) -> None:
    source, converted = (copy.deepcopy(model) for model in of_case(case).both())
    if implementation == "sdpa" and not source._supports_sdpa:
        with pytest.raises(ValueError, match="scaled_dot_product_attention"):
            converted.set_attn_implementation(implementation)
        return
    for model in (source, converted):
        model.set_attn_implementation(implementation)
    if case == "gemma2" and implementation == "sdpa":
        source.set_attn_implementation("eager")  # where SDPA is allowed, it leaves the softcap out
    ids = random_ids(2, NUM_TOKENS)
    assert_same_logits(logits_of(converted, ids), logits_of(source, ids))


@pytest.mark.parametrize("case", BFLOAT16_CASES)
def test_bfloat16(case: str) -> None:
    """Converting a bfloat16 model costs no more precision than bfloat16 itself does."""
    source, exact = tiny_model(case, dtype=torch.bfloat16), tiny_model(case)
    exact.load_state_dict(source.state_dict())
    converted = converted_copy(source, method=METHOD_OF_CASE[case])
    ids = random_ids(2, NUM_TOKENS)
    pieces = prefill_then_decode(NUM_TOKENS, NUM_PREFILL)
    assert_within_bfloat16_noise(
        logits_in_pieces(converted, ids, pieces),
        logits_in_pieces(source, ids, pieces),
        logits_in_pieces(exact, ids, pieces),
    )


@pytest.mark.parametrize("length", [1, 10, 110, 300])
@pytest.mark.parametrize("case", ["llama-dynamic", "phi3-longrope"])
def test_rope_that_depends_on_the_length(case: str, length: int) -> None:
    """Past the original length, keys are read with the frequencies of the text so far, as in the
    source's single pass; a source that caches rotated keys cannot do that in pieces. One layer,
    because what a deeper layer stores was computed with the frequencies of its time."""
    source = tiny_model(case, num_hidden_layers=1)
    converted = converted_copy(source)
    ids = random_ids(1, 300)
    pieces = equal_pieces(300, length)
    actual = logits_in_pieces(converted, ids, pieces)
    ends = set(itertools.accumulate(pieces)) & {110, 220, 300}
    for end in sorted(ends):
        expected = logits_of(source, ids[:, :end])
        assert_same_logits(actual[:, end - 1], expected[:, end - 1])


@every_case
def test_converting_leaves_the_config(case: str) -> None:
    source, converted = of_case(case).both()
    assert converted.config.to_dict() == source.config.to_dict()


def test_calibration_text_does_not_change_a_full_rank_model() -> None:
    """What a full-rank conversion computes depends on the weights alone."""
    source = tiny_model("llama")
    first, second = (
        converted_copy(source, metric="activation"),
        converted_copy(source, metric="none"),
    )
    ids = calibration_ids()[0]
    assert_same_logits(logits_of(first, ids), logits_of(second, ids))
