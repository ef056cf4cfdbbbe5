"""Rows for families that the table does not have, tried on small models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaModel

from cacheshrink_hybrid.conversion import row_trial
from cacheshrink_hybrid.conversion.row_trial import RowTrial, try_rows
from cacheshrink_hybrid.conversion.trial_model import small_model
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import FAMILIES
from cacheshrink_hybrid.families.family import its_own
from tests.families.tiny_configs import CASES, ROW_CASES, tiny_config

SAID_BY_NO_GUESS = {
    "ministral3": "a factor of queries by their position",
    "cohere2_moe-prefix": "rotation by the kind of MLP",
    "granite_swa": "a rotary embedding for each base",
    "granitemoe_swa": "a rotary embedding for each base",
    "bitnet": "a norm of what the heads give",
}
"""Cases whose rows hold a function of their own, which no structure tells, or what is not guessed.
"""
ATTENDING = [
    case
    for case in [*CASES, *ROW_CASES]
    if (row := FAMILIES[tiny_config(case).model_type]).attends
    and not case.startswith("zamba")
    and not row.caches_latents
    and not row.sizes_by_layer
    and row.reads is its_own
    and row.scaling == "scaling"
    and not case.startswith("llama4")
]
"""Guesses are of keys and values of layers that are alike, with names that transformers mostly has:
latents of a source's own, shared modules, layers that read others, and chunks are left out."""


def trial_without_row(case: str, monkeypatch: pytest.MonkeyPatch) -> RowTrial:
    """As if the family of the case were unknown."""
    config = tiny_config(case)
    monkeypatch.delitem(FAMILIES, config.model_type)
    found = try_rows(config)
    assert config.model_type not in FAMILIES
    return found


@pytest.mark.parametrize("case", [case for case in ATTENDING if case not in SAID_BY_NO_GUESS])
def test_rows_of_the_table_are_found_again(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_without_row(case, monkeypatch)
    assert trial.fitting is not None, trial.nearest
    assert trial.fitting is trial.nearest is trial.tried[-1]
    assert trial.fitting.difference is not None and trial.fitting.difference < 1e-5


@pytest.mark.parametrize("case", SAID_BY_NO_GUESS)
def test_what_no_guess_says_is_told_by_its_difference(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_without_row(case, monkeypatch)
    assert trial.fitting is None
    assert trial.nearest.difference is not None and trial.nearest.difference > 1e-2
    assert "differs from its source" in str(trial.nearest.fault)
    compared = [row.difference for row in trial.tried if row.difference is not None]
    assert trial.nearest.difference == min(compared)


def test_layers_without_angles_are_not_taken_for_rotated_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitting = trial_without_row("lara_mini", monkeypatch).fitting
    assert fitting is not None and "uses_rope=in_windows" in fitting.candidate.source


def test_a_known_row_stays_in_the_table() -> None:
    row = FAMILIES["llama"]
    assert try_rows(tiny_config("llama")).fitting is not None
    assert FAMILIES["llama"] is row


def test_a_small_model_has_all_kinds_of_layers_and_little_else() -> None:
    kinds = ["sliding_attention"] * 3 + ["full_attention"]
    config = AutoConfig.for_model(
        "gemma3_text", num_hidden_layers=12, layer_types=kinds * 3, vocab_size=5000
    )
    small = small_model(config).config
    assert small.num_hidden_layers == 4 and small.layer_types == kinds
    assert (small.vocab_size, small.intermediate_size) == (256, 128)
    assert (small.hidden_size, small.head_dim) == (config.hidden_size, config.head_dim)
    experts = AutoConfig.for_model("qwen3_moe", num_experts=64, hidden_size=64)
    assert small_model(experts).config.num_experts == 8


def test_small_models_are_the_same_for_a_seed_and_not_neutral() -> None:
    config = tiny_config("qwen3")
    first, again, other = (small_model(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["model.layers.0.self_attn.q_norm.weight"],
        other["model.layers.0.self_attn.q_norm.weight"],
    )


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"sizes of their own .*write its row"):
        try_rows(tiny_config("gemma4_text"))


def test_models_that_are_too_large_or_none_are_refused() -> None:
    huge = LlamaConfig(hidden_size=2**16, num_attention_heads=64, head_dim=1024)
    with pytest.raises(UnsupportedModelError, match="parameters, and at most 2,147,483,648"):
        try_rows(huge)
    with pytest.raises(UnsupportedModelError, match=r"no small causal model of .*vit"):
        try_rows(AutoConfig.for_model("vit"))


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("reformer", "AssertionError: If you want to use `ReformerModelWithLMHead`"),
        ("blt", "AttributeError: 'BltConfig' object has no attribute 'num_hidden_layers'"),
        ("evolla", "transformers has neither a causal language model of it nor a text model"),
        ("xlnet", "is not supported, and no row can be guessed: the model has no list"),
    ],
)
def test_whatever_transformers_raises_is_one_line(model_type: str, words: str) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        try_rows(AutoConfig.for_model(model_type))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_model_that_cannot_run_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("only with images\nand more")

    monkeypatch.setattr(LlamaModel, "forward", fail)
    tried = try_rows(tiny_config("llama")).tried
    assert {row.fault for row in tried} == {"AssertionError: only with images"}


TEXT_MODELS = {"emu3_text_model": "Emu3ForCausalLM", "granite_docling_text": "BareTextModel"}


@pytest.mark.parametrize("model_type", TEXT_MODELS)
def test_text_models_that_no_auto_class_lists(model_type: str) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(model_type, **sizes, num_hidden_layers=2, vocab_size=96)
    assert type(small_model(config)).__name__ == TEXT_MODELS[model_type]
    fitting = try_rows(config).fitting
    assert fitting is not None and "attention=" not in fitting.candidate.source


def test_a_trial_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many rows those that are likelier are tried, one at least."""
    monkeypatch.setattr(row_trial, "MOST_SECONDS", 0)
    trial = trial_without_row("lara_mini", monkeypatch)
    assert len(trial.tried) == 1 and trial.num_left > 0 and trial.fitting is None
    assert try_rows(tiny_config("llama")).num_left == 0


LIKE_BERT = (
    *("bert", "bert-generation", "camembert", "electra", "ernie", "megatron-bert", "rembert"),
    *("roberta", "roc_bert", "roformer", "xlm-roberta", "xmod"),
)


@pytest.mark.parametrize("model_type", LIKE_BERT)
def test_attention_whose_output_lies_elsewhere_is_refused_in_words(model_type: str) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model(model_type, is_decoder=True, vocab_size=96, **sizes)
    with pytest.raises(
        UnsupportedModelError,
        match=r"query 32 x 32, key 32 x 32, value 32 x 32\) gives the 32 channels of the hidden "
        "size back behind its heads: it lies in another module",
    ):
        try_rows(config)
