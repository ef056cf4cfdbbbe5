"""The engine serves what is neither rows alone: models without attention, and exact copies."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cacheshrink_hybrid import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import UnsupportedModelError
from tests.engine.idle import assert_idle
from tests.engine.test_llm import MEMORY, one_by_one, prompts, tokens_of
from tests.families.tiny_configs import tiny_config, tiny_model
from tests.models import calibration_ids, converted_copy

WISH = SamplingParams(max_tokens=12)


def quarter(model: PreTrainedModel) -> LLM:
    """An engine with a quarter of the memory that all prompts would take at once."""
    roomy = LLM(model, cache_memory=MEMORY)
    needs = [roomy.store.need(len(prompt) + WISH.max_tokens) for prompt in prompts()]
    frames = max(sum(needs) // 4, *needs) + 1
    return LLM(model, cache_memory=frames * roomy.store.layout.frame_bytes, prefill_chunk=6)


@pytest.mark.parametrize("state_ratio", [None, 2.0])
@pytest.mark.parametrize("model_type", ["mamba2", "mamba", "falcon_mamba"])
def test_models_without_attention(model_type: str, state_ratio: float | None) -> None:
    model = copy.deepcopy(tiny_model(model_type))
    if state_ratio is not None:
        config = CompressionConfig(state_ratio=state_ratio, state_dtype="float16")
        convert_model(model, config, calibration_ids())
    llm = quarter(model)
    assert tokens_of(llm.generate(prompts(), WISH)) == one_by_one(model, prompts(), 12)
    assert_idle(llm)


def test_hybrids_that_transformers_runs_without_a_cache_only() -> None:
    config = tiny_config("granitemoehybrid")
    config.layer_types = ["linear_attention"] * config.num_hidden_layers
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match="can only be called on Attention layers"):
        model.generate(torch.tensor([prompts()[0]]), max_new_tokens=2)
    with pytest.raises(UnsupportedModelError, match="recurrent layers alone"):
        LLM(model, cache_memory=MEMORY)


@pytest.mark.parametrize(
    ("case", "sinks", "window"),
    [
        ("llama", 2, 5),
        ("llama", 3, 0),
        ("qwen3", 4, 8),
        ("gpt2", 0, 40),
        ("mistral-window", 0, 4),
        ("bamba", 1, 1),
        ("gemma3n_text", 2, 5),
    ],
)
def test_exact_copies(case: str, sinks: int, window: int) -> None:
    model = converted_copy(
        tiny_model(case),
        6.0,
        "auto",
        metric="activation",
        cache_bits="auto",
        exact_sinks=sinks,
        exact_window=window,
    )
    llm = quarter(model)
    assert tokens_of(llm.generate(prompts(), WISH)) == one_by_one(model, prompts(), 12)
    assert_idle(llm)


def test_exact_copies_are_what_is_read() -> None:
    """Few-bit rows alone give other tokens, so the test above can fail."""
    settings = {"metric": "activation", "cache_bits": "auto"}
    given = [
        LLM(model, cache_memory=MEMORY).generate(prompts(), WISH)
        for model in (
            converted_copy(tiny_model("llama"), 6.0, "auto", **settings),
            converted_copy(tiny_model("llama"), 6.0, "auto", exact_window=40, **settings),
        )
    ]
    assert tokens_of(given[0]) != tokens_of(given[1])
