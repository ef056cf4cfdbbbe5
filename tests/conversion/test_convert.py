"""The whole conversion: names, paths, objects, what is refused, and nothing half done."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from cacheshrink_hybrid import convert_model, convert_to_mla, plan_of
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import (
    CacheShrinkError,
    CalibrationError,
    ConfigError,
    PlanError,
    UnsupportedModelError,
)
from tests.families.tiny_configs import COMMON, tiny_model
from tests.models import calibration_ids, converted_copy, logits_of, random_ids, unchanged
from tests.texts import CHAT, TEXTS, chat_tokenizer, word_tokenizer

QUIET = {"verbose": False}
WITH_TEXT = {"tokenizer": word_tokenizer(), "calibration_texts": TEXTS, **QUIET}


BAD_ARGUMENTS = {
    "ratio-zero": ({"compression_ratio": 0}, ConfigError, "must be a finite number >= 1"),
    "ratio-negative": ({"compression_ratio": -1}, ConfigError, "must be a finite number >= 1"),
    "ratio-half": ({"compression_ratio": 0.5}, ConfigError, "must be a finite number >= 1"),
    "ratio-nan": ({"compression_ratio": float("nan")}, ConfigError, "must be a finite"),
    "ratio-inf": ({"compression_ratio": float("inf")}, ConfigError, "must be a finite"),
    "ratio-huge": ({"compression_ratio": 1e6}, PlanError, "give a compression_ratio of at most 32"),
    "ratio-huge-uniform": (
        {"compression_ratio": 1e6, "rank_allocation": "uniform"},
        PlanError,
        "leaves 0.0 bytes per token.*give a compression_ratio of at most",
    ),
    "method": ({"compression_method": "pca"}, ConfigError, "'pca' is unknown; choose one of"),
    "metric": ({"metric": "hessian"}, ConfigError, "'hessian' is unknown; choose one of"),
    "bits": ({"cache_bits": 3}, ConfigError, "cache_bits=3 is unknown; choose one of"),
    "parameter-of-another-method": (
        {"compression_method": "joint", "cross_layer_group_size": 2},
        ConfigError,
        "used by compression_method='xkv' only, not by 'joint'; leave it out",
    ),
    "rank-and-ratio": (
        {"compression_method": "joint", "d_latent": 8, "compression_ratio": 2.0},
        ConfigError,
        "both fix the size; give one of them",
    ),
    "rank-too-large": (
        {"compression_method": "joint", "d_latent": 99},
        PlanError,
        "d_latent=99 exceeds the full rank 32 .*give at most 32",
    ),
    "rank-too-large-apart": (
        {"compression_method": "separate", "d_latent": 17},
        PlanError,
        "d_latent=17 exceeds the full rank 16 .*give at most 16",
    ),
    "all-layers-skipped": (
        {"compression_method": "xkv", "xkv_skip_early_layers": 3},
        PlanError,
        "leaves none of the 3 attention layers .*skip fewer",
    ),
    "kept-layers-over-budget": (
        {
            "compression_method": "xkv",
            "xkv_skip_early_layers": 1,
            "keep_early_layers_original": True,
        },
        PlanError,
        "at most 2.66, or keep fewer layers, which take 64",
    ),
    "no-tokenizer": ({"tokenizer": None}, ConfigError, "needs tokenizer=.*use_calibration=False"),
    "texts-without-calibration": (
        {"use_calibration": False},
        ConfigError,
        "calibration_texts are not used with use_calibration=False; drop one",
    ),
    "chats-without-calibration": (
        {"use_calibration": False, "calibration_texts": None, "calibration_chats": [CHAT]},
        ConfigError,
        "calibration_chats are not used with use_calibration=False; drop one",
    ),
    "chats-without-template": (
        {"calibration_chats": [CHAT]},
        ConfigError,
        "has no chat template, and conversations take one; set tokenizer.chat_template, or give",
    ),
    "one-chat": ({"calibration_chats": CHAT}, CalibrationError, "holds messages, so it is one"),
    "metric-without-calibration": (
        {"use_calibration": False, "calibration_texts": None, "metric": "fisher"},
        ConfigError,
        "contradict each other.*leave metric out",
    ),
    "no-metric-with-calibration": ({"metric": "none"}, ConfigError, "contradict each other"),
    "plain-string": (
        {"calibration_texts": "one two three"},
        CalibrationError,
        "is one string; give a list",
    ),
    "no-texts": ({"calibration_texts": []}, CalibrationError, "holds no text; give at least one"),
    "blank-texts": ({"calibration_texts": [" ", ""]}, CalibrationError, "holds no text"),
    "numbers": ({"calibration_texts": [1, 2]}, CalibrationError, "holds a int; give strings only"),
    "nothing": (
        {"calibration_texts": ["one", None]},
        CalibrationError,
        "holds a NoneType; give strings only",
    ),
    "tokenizer": ({"tokenizer": 5}, ConfigError, "tokenizer=5 is no tokenizer; give what AutoTok"),
    "precision": ({"dtype": "float99"}, ConfigError, "dtype='float99' is no floating-point"),
    "whole-numbers": ({"dtype": torch.int8}, ConfigError, r"dtype=torch.int8 is no floating-poi"),
    "self-check": ({"self_check": "x"}, ConfigError, "self_check='x' is neither True nor False"),
    "inplace": ({"inplace": "no"}, ConfigError, "inplace='no' is neither True nor False; give"),
    "verbose": ({"verbose": 1}, ConfigError, "verbose=1 is neither True nor False"),
    "all-at-once": (
        {"inplace": None, "tokenizer": "t", "dtype": 16, "compression_ratio": 0},
        ConfigError,
        "tokenizer='t' is .*; dtype=16 is .*; inplace=None is .*; compression_ratio=0 must",
    ),
    "generator": (
        {"calibration_texts": (text for text in TEXTS)},
        CalibrationError,
        "is a generator; give a list of strings",
    ),
    "short-texts": (
        {"calibration_texts": ["one two"]},
        CalibrationError,
        "the text has 2 tokens; give at least 16",
    ),
    "unknown-dataset": (
        {"calibration_texts": None, "calibration_dataset": "no/such-data-set"},
        CalibrationError,
        "cannot be asked for a data set.*calibration_texts=",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_argument_leaves_the_model_as_it_was(name: str) -> None:
    values, error, message = BAD_ARGUMENTS[name]
    model = tiny_model("llama").train()
    with unchanged(model), pytest.raises(error, match=message) as caught:
        convert_to_mla(model, **{**WITH_TEXT, **values})
    assert isinstance(caught.value, CacheShrinkError)


def test_bad_argument_with_a_dtype_leaves_the_dtype() -> None:
    model = tiny_model("llama")
    with unchanged(model), pytest.raises(CacheShrinkError):
        convert_to_mla(
            model, **{**WITH_TEXT, "calibration_texts": ["one two"], "dtype": torch.bfloat16}
        )


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
UNSUPPORTED = {
    "indexed-latent": (
        "glm_moe_dsa",
        {
            **COMMON,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
            "first_k_dense_replace": 3,
        },
        AutoModelForCausalLM,
        "'glm_moe_dsa' is not converted: it chooses what its queries read by an index of keys",
    ),
    "no-entry": (
        "ctrl",
        COMMON,
        AutoModelForCausalLM,
        r"'ctrl' is unknown; supported are .*llama.*families/rows.py",
    ),
    "encoder": ("bert", {**SMALL, "intermediate_size": 48}, AutoModel, "'bert' is not converted"),
    "encoder-decoder": (
        "longt5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 96},
        AutoModelForSeq2SeqLM,
        "'longt5' is not converted: of decoders that read an encoder's output only",
    ),
    "pure-mamba": (
        "mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 96},
        AutoModelForCausalLM,
        "mamba.* (is unknown|no attention layers)",
    ),
    "hybrid-without-attention": (
        "granitemoehybrid",
        {
            **COMMON,
            "layer_types": ["mamba"] * 3,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 32,
        },
        AutoModelForCausalLM,
        "no attention layers, so there is no KV cache",
    ),
    "cross-attention": (
        "gpt2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96, "add_cross_attention": True},
        AutoModelForCausalLM,
        "add_cross_attention=True.*only causal self-attention can be converted",
    ),
    "no-language-model": (
        "llama",
        COMMON,
        AutoModel,
        r"LlamaModel has no language-model head.*AutoModelForCausalLM",
    ),
    "classifier": (
        "llama",
        {**COMMON, "num_labels": 3},
        AutoModelForSequenceClassification,
        r"LlamaForSequenceClassification has no language-model head.*give the causal language",
    ),
    "classifier-of-tokens": (
        "qwen2",
        COMMON,
        AutoModelForTokenClassification,
        r"Qwen2ForTokenClassification has no language-model head",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_model(name: str) -> None:
    model_type, values, loader, message = UNSUPPORTED[name]
    model = loader.from_config(AutoConfig.for_model(model_type, **values))
    for how in (WITH_TEXT, {**WITH_TEXT, "calibration_texts": None, "use_calibration": False}):
        with unchanged(model), pytest.raises(UnsupportedModelError, match=message):
            convert_to_mla(model, **how)


def test_converted_twice() -> None:
    model = converted_copy(tiny_model("llama"), 2.0)
    with unchanged(model), pytest.raises(UnsupportedModelError, match="converted already; convert"):
        convert_to_mla(model, **WITH_TEXT)


@pytest.mark.parametrize("metric", ["fisher", "score", "activation", "none"])
@pytest.mark.parametrize(
    "method", ["auto", "joint", "separate", "xkv", "per_head", "rotate", "rotate_joint"]
)
def test_same_seed_same_weights(method: str, metric: str) -> None:
    source = tiny_model("llama")
    seed = {"seed": 7} if metric == "fisher" else {}
    first, second = (converted_copy(source, 4.0, method, metric=metric, **seed) for _ in range(2))
    state = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert plan_of(first) == plan_of(second)


def test_another_seed_other_weights() -> None:
    source = tiny_model("llama")
    first, second = (
        converted_copy(source, 4.0, fisher_labels="model", seed=seed) for seed in (0, 1)
    )
    name = "model.layers.0.self_attn.kv_a_proj.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])


def test_conversion_does_not_draw_from_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    source = tiny_model("llama")
    torch.random.set_rng_state(state)
    converted_copy(source, 4.0)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_converting_without_gradients() -> None:
    """The Fisher metric needs a backward pass, wherever the caller stands."""
    source = tiny_model("llama")
    with torch.no_grad():
        inside = converted_copy(source, 4.0)
        assert not torch.is_grad_enabled()
    ids = random_ids(1, 12)
    assert torch.equal(logits_of(inside, ids), logits_of(converted_copy(source, 4.0), ids))


@pytest.mark.parametrize("metric", ["fisher", "score", "activation"])
def test_object_with_tokenizer(metric: str, capsys: pytest.CaptureFixture) -> None:
    model = tiny_model("llama")
    converted, tokenizer = convert_to_mla(model, metric=metric, **WITH_TEXT)
    assert converted is model
    assert tokenizer is WITH_TEXT["tokenizer"]
    assert plan_of(model).metric == metric
    assert plan_of(model).compression_ratio >= 4.0
    assert capsys.readouterr().out == ""


def test_without_calibration() -> None:
    model, tokenizer = convert_to_mla(tiny_model("llama"), use_calibration=False, **QUIET)
    assert tokenizer is None
    assert plan_of(model).metric == "none"


def test_plan_is_printed(capsys: pytest.CaptureFixture) -> None:
    convert_to_mla(tiny_model("llama"), **{**WITH_TEXT, "verbose": True, "cache_bits": 16})
    out = capsys.readouterr().out
    assert "192 -> 48 bytes per token (4.00x at 16 bits)" in out
    assert re.search(r"calibrating on .+: 19 sequences, 361 tokens, 1 of the sequences held", out)


def test_nothing_is_predicted_of_what_is_left_as_it_is(capsys: pytest.CaptureFixture) -> None:
    """States, where they have no ratio."""
    for settings in ({}, {"state_ratio": 2.0}):
        convert_to_mla(tiny_model("granitemoehybrid"), **{**WITH_TEXT, "verbose": True}, **settings)
        (line,) = (
            line for line in capsys.readouterr().out.splitlines() if "of state per sequence" in line
        )
        assert ("predicted loss" in line) == bool(settings)


@pytest.mark.parametrize("as_path", [str, Path])
def test_path(as_path: type, tmp_path: Path) -> None:
    source = tiny_model("llama")
    source.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = convert_to_mla(as_path(tmp_path), calibration_texts=TEXTS, **QUIET)
    assert not model.training
    assert tokenizer is not None
    expected, _ = convert_to_mla(copy.deepcopy(source), **WITH_TEXT)
    state = expected.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=1e-4, atol=1e-5), name


def test_path_with_dtype(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    model, _ = convert_to_mla(tmp_path, **{**WITH_TEXT, "dtype": torch.bfloat16, "device": "cpu"})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_path_of_an_unsupported_model_fails_before_its_weights_are_read(tmp_path: Path) -> None:
    AutoConfig.for_model("ctrl", **COMMON).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'ctrl' is unknown"):
        convert_to_mla(tmp_path, **WITH_TEXT)


def test_path_of_a_converted_model(tmp_path: Path) -> None:
    converted_copy(tiny_model("llama"), 2.0).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"convert.*source"):
        convert_to_mla(tmp_path, **WITH_TEXT)


def test_local_text_file(tmp_path: Path) -> None:
    """The documents of a file give the same model as the same texts."""
    file = tmp_path / "texts.txt"
    file.write_text("\n<|endoftext|>\n".join(TEXTS))
    from_file, _ = convert_to_mla(
        tiny_model("llama"), tokenizer=word_tokenizer(), calibration_dataset=file, **QUIET
    )
    from_texts, _ = convert_to_mla(tiny_model("llama"), **WITH_TEXT)
    ids = random_ids(1, 12)
    assert torch.equal(logits_of(from_file, ids), logits_of(from_texts, ids))


@pytest.mark.parametrize(
    ("method", "rank", "channels"), [("joint", 8, 8), ("separate", 4, 8), ("xkv", 4, 8)]
)
def test_explicit_rank(method: str, rank: int, channels: int) -> None:
    model = tiny_model("llama")
    config = CompressionConfig(compression_method=method, d_latent=rank, metric="none")
    plan = convert_model(model, config, [])
    assert {latent.kv_lora_rank for latent in plan.latents} == {channels}
    assert plan.bytes_per_token == 3 * channels * 2


def test_kept_layers_stay_as_they_are() -> None:
    source = tiny_model("llama")
    model = converted_copy(
        source,
        2.0,
        "xkv",
        xkv_skip_early_layers=1,
        keep_early_layers_original=True,
        metric="activation",
    )
    plan = plan_of(model)
    assert type(model.model.layers[0].self_attn) is type(source.model.layers[0].self_attn)
    assert [latent.layer_ids for latent in plan.latents] == [(1,), (2,)]
    assert plan.kept_bytes_per_token == 64
    assert plan.compression_ratio >= 2.0


def test_chats_are_calibrated_on_and_named() -> None:
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    plans = []
    for how in ({"calibration_chats": chats}, {"calibration_texts": TEXTS}):
        model, _ = convert_to_mla(
            copy.deepcopy(tiny_model("llama")), tokenizer=chat_tokenizer(), **how, **QUIET
        )
        plans.append(plan_of(model))
    assert plans[0].calibrated_on.startswith(f"chats of the caller: {len(TEXTS)} sequences, ")
    assert plans[0].predicted_loss != plans[1].predicted_loss


def test_no_weights_are_loaded_for_chats_without_a_template(tmp_path: Path) -> None:
    tiny_model("llama").config.save_pretrained(tmp_path)  # there are none
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no chat template"):
        convert_to_mla(tmp_path, calibration_chats=[CHAT], **QUIET)


def test_no_calibration_sequences() -> None:
    model = tiny_model("llama")
    with unchanged(model), pytest.raises(CalibrationError, match="no calibration tokens"):
        convert_model(model, CompressionConfig(), [])


def test_sequences_may_be_a_generator() -> None:
    source = tiny_model("llama")
    model = copy.deepcopy(source)
    convert_model(model, CompressionConfig(), (ids for ids in calibration_ids()))
    by_default = {"cache_bits": "auto", "exact_sinks": None, "exact_window": None}
    expected = converted_copy(source, 4.0, "auto", **by_default)
    ids = random_ids(1, 12)
    assert torch.equal(logits_of(model, ids), logits_of(expected, ids))
