"""Measurement through the cache: right numbers, independent of how the text is fed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from cacheshrink_hybrid import (
    compare_outputs,
    compute_perplexity,
    generate_samples,
    measure_cache_memory,
    measure_perplexity,
    measure_recall,
)
from cacheshrink_hybrid.errors import CalibrationError, ConfigError
from cacheshrink_hybrid.evaluation.uniform_kv import (
    UniformKVCache,
    rounded,
    uniform_kv_bytes_per_token,
)
from cacheshrink_hybrid.families import model_spec
from cacheshrink_hybrid.model.attached_plan import is_converted, plan_of
from tests.families.tiny_configs import tiny_model
from tests.models import logits_in_pieces, logits_of, pair, random_ids
from tests.texts import TEXTS as ALL_TEXTS
from tests.texts import word_tokenizer

TOKENIZER = word_tokenizer()
TEXTS = [" ".join(ALL_TEXTS[i : i + 3]) for i in range(5)]


def _direct_perplexity(model, texts: list[str], max_length: int) -> float:
    """One pass per window, no cache, no batch."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([TOKENIZER(text).input_ids])
        for start in range(0, ids.shape[1], max_length):
            window = ids[:, start : start + max_length]
            if window.shape[1] > 1:
                logits = logits_of(model, window)[0, :-1]
                total += float(nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
                count += window.shape[1] - 1
    return math.exp(total / count)


@pytest.mark.parametrize("case", ["llama", "mistral-window", "granitemoehybrid", "jamba"])
def test_perplexity_equals_a_direct_pass(case: str) -> None:
    source, converted = pair(case).both()
    expected = _direct_perplexity(source, TEXTS, 24)
    for model in (source, converted):
        assert compute_perplexity(model, TOKENIZER, TEXTS, 24) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{"batch_size": 3}, {"chunk_length": 5}, {"chunk_length": 1}])
def test_perplexity_does_not_depend_on_batches_and_chunks(settings: dict) -> None:
    converted = pair("llama", ratio=2.0).converted
    expected = compute_perplexity(converted, TOKENIZER, TEXTS, 24)
    assert compute_perplexity(converted, TOKENIZER, TEXTS, 24, **settings) == pytest.approx(
        expected, rel=1e-5
    )


def test_stride_counts_every_token_once() -> None:
    model = tiny_model("llama")
    whole = measure_perplexity(model, TOKENIZER, TEXTS, max_length=200)
    strided = measure_perplexity(model, TOKENIZER, TEXTS, max_length=16, stride=8)
    assert strided.num_tokens == whole.num_tokens
    assert sum(tokens for _, _, tokens, _ in whole.by_position) == whole.num_tokens


def test_positions_add_up_to_the_whole() -> None:
    result = measure_perplexity(tiny_model("llama"), TOKENIZER, TEXTS, max_length=40)
    nll = sum(tokens * math.log(value) for _, _, tokens, value in result.by_position)
    assert nll == pytest.approx(result.total_nll, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1}, "max_length=1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"stride": 99, "max_length": 40}, "would skip tokens"),
        ({"chunk_length": 0}, "chunk_length=0"),
    ],
)
def test_bad_lengths_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_perplexity(tiny_model("llama"), TOKENIZER, TEXTS, **settings)


@pytest.mark.parametrize(("texts", "message"), [("a string", "one string"), ([], "no text")])
def test_bad_texts_are_refused(texts: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        compute_perplexity(tiny_model("llama"), TOKENIZER, texts)


@pytest.mark.parametrize("bits", [16, "auto"])
@pytest.mark.parametrize("case", ["llama", "mistral-window", "gpt2", "falcon_h1", "zamba2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_live_bytes_are_the_planned_bytes(case: str, batch_size: int, bits: int | str) -> None:
    converted = pair(case, ratio=2.0, cache_bits=bits).converted
    measured = measure_cache_memory(converted, [2, 7, 40], batch_size)
    assert measured["compression_ratio"] >= 2.0
    for values in measured["per_sequence_length"].values():
        assert values["live_bytes"] == values["expected_bytes"]


def test_source_memory_is_what_its_spec_says() -> None:
    measured = measure_cache_memory(tiny_model("llama"), [9])
    values = measured["per_sequence_length"][9]
    assert values["live_bytes"] == values["source_bytes"] == 9 * 2 * measured["bytes_per_token"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [16, "auto"])
@pytest.mark.parametrize("case", ["llama", "mistral-window", "falcon_h1", "mamba2"])
def test_memory_ratios_are_at_16_bits_in_any_dtype(case: str, bits, dtype: torch.dtype) -> None:
    """As the plan has them, whatever the model computes in; 1 for a source."""
    settings = {"cache_bits": bits} if case != "mamba2" else {}
    states = {"state_ratio": 1.5} if case in ("falcon_h1", "mamba2") else {}
    ratio = {"ratio": 2.0} if case != "mamba2" else {}
    source, converted = pair(case, **ratio, **settings, **states).both()
    for model in (copy.deepcopy(source).to(dtype), copy.deepcopy(converted).to(dtype)):
        (values,) = measure_cache_memory(model, [40])["per_sequence_length"].values()
        plan = plan_of(model) if is_converted(model) else None
        kv = 1.0 if plan is None else plan.compression_ratio
        state = 1.0 if plan is None else plan.state_ratio
        spec = model_spec(model.config)
        if case == "mistral-window" or not spec.attention_layers:
            kv = values["ratio"]  # windows hold another share of each layer
        assert values["ratio"] == (pytest.approx(kv, rel=1e-6) if kv is not None else None)
        if spec.state_layers:
            assert values["state_ratio"] == pytest.approx(state, rel=0.02)
        else:
            assert values["state_ratio"] is None
            assert values["total_ratio"] == values["ratio"]


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_windows_beyond_the_model_are_refused(case: str) -> None:
    model = tiny_model(case)
    limit = model.config.max_position_embeddings
    text = " ".join(TEXTS * 30)
    with pytest.raises(ConfigError, match=f"the model has {limit} positions"):
        compute_perplexity(model, TOKENIZER, [text], max_length=limit + 1)
    assert compute_perplexity(model, TOKENIZER, TEXTS[:2], max_length=limit + 1) > 1  # all short


def test_lengths_beyond_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="limit of 256"):
        measure_cache_memory(tiny_model("llama"), [257])


def test_equal_models_have_equal_outputs() -> None:
    source, converted = pair("llama").both()
    result = compare_outputs(source, converted, TOKENIZER, TEXTS)
    assert abs(result["kl"]) < 1e-8
    assert result["top1_agreement"] == 1.0


def test_kl_grows_with_the_ratio() -> None:
    source = pair("llama").source
    kls = [
        compare_outputs(source, pair("llama", ratio=r).converted, TOKENIZER, TEXTS)["kl"]
        for r in (1.0, 2.0, 8.0)
    ]
    assert kls == sorted(kls)
    assert kls[-1] > 1e-4


def test_recall_of_a_model_that_remembers_nothing() -> None:
    model = tiny_model("llama", max_position_embeddings=1024)
    results = measure_recall(model, TOKENIZER, (32,), num_exercises=2, filler=TEXTS)
    assert set(results) == {32}
    assert 0 <= results[32]["mean"] < 0.5


def test_recall_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="256 positions"):
        measure_recall(tiny_model("llama"), TOKENIZER, (300,), num_exercises=1, filler=TEXTS)


def test_samples_repeat_under_a_seed() -> None:
    model = pair("llama", ratio=2.0).converted
    first, second = (
        generate_samples(model, TOKENIZER, TEXTS[:2], max_new_tokens=6, temperature=1.0, seed=4)
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "^temperature=-1.0 must be finite and at least 0$"),
        ({"temperature": float("nan")}, "^temperature=nan must be"),
        ({"max_new_tokens": 0}, "^max_new_tokens=0 must be at least 1$"),
        ({"max_new_tokens": 0, "temperature": -1.0}, "temperature=.*; max_new_tokens="),
    ],
)
def test_samples_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_samples(pair("llama").source, TOKENIZER, TEXTS[:1], **settings)


@pytest.mark.parametrize("bits", [8, 4])
def test_uniform_rounding(bits: int) -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    y = rounded(x, bits)
    step = x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((x - y).abs() <= 0.51 * step).all()
    assert max(len(row.unique()) for row in y) <= 2**bits
    assert torch.equal(rounded(torch.zeros(2, 4), bits), torch.zeros(2, 4))


def test_uniform_cache_is_the_baseline() -> None:
    model = tiny_model("llama")
    ids = random_ids(1, 20)
    exact = logits_in_pieces(model, ids, [10, 10])
    errors = [
        (logits_in_pieces(model, ids, [10, 10], UniformKVCache(model, bits)) - exact).abs().max()
        for bits in (8, 4)
    ]
    assert 0 < errors[0] < errors[1]
    # three layers, two KV heads of 8: keys and values of 8 bits and a float16 scale each
    assert uniform_kv_bytes_per_token(model, 8) == 3 * 2 * 2 * (8 + 2)
