"""Converted models as DeepSeek checkpoints: stock transformers gives our logits and our tokens."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM, PreTrainedModel

from cacheshrink_hybrid import export_deepseek
from cacheshrink_hybrid.errors import (
    CacheShrinkWarning,
    CheckpointError,
    PlanError,
    UnsupportedModelError,
)
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, logits_of, pair, random_ids
from tests.tolerances import assert_same_logits

CASES = ["llama", "llama-mqa", "llama-theta", "llama-linear", "llama-llama3", "llama-yarn"]
CASES += ["llama-head-dim", "mistral", "phi3", "smollm3"]
LENGTH = 40


def _exported(model: PreTrainedModel, directory: Path, **settings) -> PreTrainedModel:
    """The checkpoint as transformers loads it, by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheShrinkWarning)
        export_deepseek(model, directory, **settings)
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert type(loaded) is DeepseekV3ForCausalLM
    return loaded.eval()


@pytest.mark.parametrize("ratio", [1.0, 2.0])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_converted_model(case: str, ratio: float, tmp_path: Path) -> None:
    models = pair(case, "decoupled_rope", ratio)
    loaded = _exported(models.converted, tmp_path)
    ids = random_ids(2, LENGTH)
    due = logits_of(models.converted, ids)
    assert_same_logits(logits_of(loaded, ids), due)
    if ratio == 1 and case != "llama-head-dim":  # its latents are wider than the text is long
        assert_same_logits(logits_of(loaded, ids), logits_of(models.source, ids))


def test_generation_gives_the_same_tokens(tmp_path: Path) -> None:
    converted = pair("llama", "decoupled_rope", 2.0).converted
    loaded = _exported(converted, tmp_path)
    ids = random_ids(2, 9)
    found, due = (
        model.generate(ids, max_new_tokens=12, do_sample=False) for model in (loaded, converted)
    )
    assert torch.equal(found, due)


def test_padding_changes_widths_alone(tmp_path: Path) -> None:
    converted = pair("llama", "decoupled_rope", 2.0, qk_rope_head_dim=4).converted
    loaded = _exported(converted, tmp_path, pad_to=(512, 64))
    assert (loaded.config.kv_lora_rank, loaded.config.qk_rope_head_dim) == (512, 64)
    ids = random_ids(1, LENGTH)
    assert_same_logits(logits_of(loaded, ids), logits_of(converted, ids))
    with pytest.raises(PlanError, match=r"pad_to=\(512, 2\) is below"):
        export_deepseek(converted, tmp_path / "narrow", pad_to=(512, 2))


@pytest.mark.parametrize("case, without", [("glm", "attention_bias"), ("ernie4_5", "use_bias")])
def test_rotations_of_neighbours_are_those_of_the_converted_model(
    case: str, without: str, tmp_path: Path
) -> None:
    converted = converted_copy(tiny_model(case, **{without: False}), 2.0, "decoupled_rope")
    loaded = _exported(converted, tmp_path)
    ids = random_ids(1, LENGTH)
    assert_same_logits(logits_of(loaded, ids), logits_of(converted, ids))


def test_tied_embeddings_are_written_apart(tmp_path: Path) -> None:
    source = tiny_model("llama", tie_word_embeddings=True)
    converted = converted_copy(source, 2.0, "decoupled_rope")
    loaded = _exported(converted, tmp_path)
    assert not loaded.config.tie_word_embeddings
    ids = random_ids(1, LENGTH)
    assert_same_logits(logits_of(loaded, ids), logits_of(converted, ids))


def test_layers_without_rotation_need_no_rotary_key(tmp_path: Path) -> None:
    source = tiny_model("smollm3", no_rope_layers=[0, 0, 0])
    for method in ("joint", "separate"):
        converted = converted_copy(source, 2.0, method)
        loaded = _exported(converted, tmp_path / method)
        ids = random_ids(1, LENGTH)
        assert_same_logits(logits_of(loaded, ids), logits_of(converted, ids))


def test_all_norms_have_the_epsilon_of_the_latent_s(tmp_path: Path) -> None:
    """Engines differ in where they take that from."""
    converted = converted_copy(tiny_model("llama", rms_norm_eps=1e-3), 2.0, "decoupled_rope")
    loaded = _exported(converted, tmp_path)
    norms = {module.variance_epsilon for name, module in loaded.named_modules() if "norm" in name}
    assert norms == {1e-6} == {loaded.config.rms_norm_eps}
    ids = random_ids(1, LENGTH)
    assert_same_logits(logits_of(loaded, ids), logits_of(converted, ids))


def test_frequencies_are_those_of_the_source(tmp_path: Path) -> None:
    converted = pair("llama-theta", "decoupled_rope", 2.0, qk_rope_head_dim=4).converted
    loaded = _exported(converted, tmp_path)
    chosen = list(converted.model.layers[0].self_attn.plan.rotary_frequencies)
    due = converted.model.rotary_emb.inv_freq[chosen]
    torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, due)


@pytest.mark.parametrize(
    "case, method, reason",
    [
        ("llama", "joint", "keys of layer 0 are rebuilt before they are rotated"),
        ("llama-biases", "decoupled_rope", "queries of layer 0 have a bias"),
        ("mistral-window", "decoupled_rope", "layer 0 has a sliding window of 8"),
        ("gpt_neox", "decoupled_rope", "does not keep one list of layers|is made of"),
        ("gpt2", "joint", "does not keep one list of layers|is made of"),
        ("falcon_h1", "decoupled_rope", "layer 0 has a recurrent mixer"),
        ("olmo2", "joint", "queries or keys of layer 0 are normalised"),
        ("bitnet", "joint", "outputs of heads of layer 0 are normalised"),
        ("gemma3n_text", "joint", "layer 3 reads the keys and values of layer 2"),
    ],
)
def test_what_the_format_cannot_say_is_refused_by_name(
    case: str, method: str, reason: str, tmp_path: Path
) -> None:
    converted = pair(case, method).converted
    with pytest.raises(UnsupportedModelError, match=reason):
        export_deepseek(converted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    """Its modules have the names of Llama's."""
    source = tiny_model("granite", residual_multiplier=0.5)
    converted = converted_copy(source, 2.0, "decoupled_rope")
    with pytest.raises(UnsupportedModelError, match="computes something that DeepSeek's layers"):
        export_deepseek(converted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_and_coded_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="is not converted"):
        export_deepseek(tiny_model("llama"), tmp_path)
    source = tiny_model("smollm3", no_rope_layers=[0, 0, 0])
    with pytest.raises(UnsupportedModelError, match="rows of few bits"):
        export_deepseek(converted_copy(source, 4.0, cache_bits="auto"), tmp_path)
    half = converted_copy(tiny_model("llama"), 2.0, "decoupled_rope").half()
    with pytest.raises(UnsupportedModelError, match="float16 has no numbers"):
        export_deepseek(half, tmp_path)


def test_widths_are_said_with_the_engines_that_take_them(tmp_path: Path) -> None:
    converted = pair("llama", "decoupled_rope", 2.0).converted
    with pytest.warns(
        CacheShrinkWarning, match=r"read by transformers and Triton MLA.*\(512, 64\)"
    ):
        export_deepseek(converted, tmp_path / "own")
    with pytest.warns(CacheShrinkWarning, match="has 576 values per token in every layer"):
        export_deepseek(converted, tmp_path / "padded", pad_to=(512, 64))


def test_another_model_is_not_overwritten(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds another model"):
        export_deepseek(pair("llama", "decoupled_rope", 2.0).converted, tmp_path)
