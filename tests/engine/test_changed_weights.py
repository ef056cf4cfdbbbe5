"""An engine serves the weights that its model has now."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.engine.decode_steps import ModelPlaces
from cacheshrink_hybrid.errors import UnsupportedModelError
from tests.dispatch import run_references
from tests.models import pair, random_ids

SAMPLING = SamplingParams(max_tokens=6)


def model_of(case: str) -> PreTrainedModel:
    return copy.deepcopy(pair(case, "joint", 2.0, metric="activation").converted)


def tokens(llm: LLM) -> list[list[int]]:
    return [list(output.token_ids) for output in llm.generate(random_ids(2, 9).tolist(), SAMPLING)]


def engine(model: PreTrainedModel, backend: str = "torch") -> LLM:
    return LLM(model, None, cache_memory="2MiB", backend=backend)  # type: ignore[arg-type]


def shuffle(model: PreTrainedModel) -> None:
    for name, parameter in model.named_parameters():
        if "k_b_proj" in name or "v_b_proj" in name or "k_norm" in name:
            parameter.data.copy_(4 * parameter.data.flip(0))


def adapt(model: PreTrainedModel) -> None:
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).eval()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("change", [shuffle, adapt])
@pytest.mark.parametrize("case", ["llama", "qwen3"])
def test_changes_are_served(case, change, backend, monkeypatch: pytest.MonkeyPatch) -> None:
    run_references(monkeypatch)
    model = model_of(case)
    llm = engine(model, backend)
    before = tokens(llm)
    change(model)
    after = tokens(llm)
    assert after != before
    assert after == tokens(engine(model))


def test_models_of_peft_are_refused() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    adapted = get_peft_model(model_of("llama"), config)
    with pytest.raises(UnsupportedModelError, match=r"PeftModel of peft; give model.get_base_mod"):
        engine(adapted)
    tokens(engine(adapted.get_base_model()))


def test_places_hold_while_values_change() -> None:
    model = model_of("llama")
    places = ModelPlaces(model)
    shuffle(model)
    assert places.hold()


@pytest.mark.parametrize(
    "change",
    [
        adapt,
        lambda model: model.to(torch.bfloat16),
        lambda model: setattr(model.lm_head, "weight", nn.Parameter(model.lm_head.weight.data)),
        lambda model: setattr(model.model, "norm", copy.deepcopy(model.model.norm)),
        lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data.clone()),
    ],
    ids=["adapters", "dtype", "parameter", "module", "data"],
)
def test_places_that_changed(change) -> None:
    model = model_of("llama")
    places = ModelPlaces(model)
    change(model)
    assert not places.hold()
