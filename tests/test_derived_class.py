"""Converted models have a class of their own name, which transformers treats as the source's, and
can be pickled."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cacheshrink_hybrid import convert_to_mla, plan_of
from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.model.attached_plan import is_converted
from cacheshrink_hybrid.model.latent_model import LatentModel, source_class_of
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import converted_copy, logits_of, pair, random_ids

HYBRID_CASES = ("granitemoehybrid", "jamba", "qwen3_next", "zamba2")


def with_states(case: str) -> PreTrainedModel:
    settings = {"state_ratio": 2.0} if case in HYBRID_CASES else {}
    return pair(case, "auto", ratio=4.0, metric="activation", **settings).converted


def torch_saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch": torch_saved,
}


@pytest.mark.parametrize("case", CASES)
def test_class_names(case: str) -> None:
    source, model = pair(case, "auto", ratio=4.0, metric="activation").both()
    assert type(model).__name__ == f"Latent{type(source).__name__}"
    assert isinstance(model, type(source))
    assert source_class_of(model) is type(source)
    assert type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    assert (
        model.loss_type
        == source.loss_type
        == type(model)(source.config, plan=plan_of(model)).loss_type
    )
    for switch in (
        "_can_set_attn_implementation",
        "_can_set_experts_implementation",
        "can_generate",
    ):
        assert getattr(type(model), switch)() == getattr(type(source), switch)()
    assert type(model)._no_split_modules == type(source)._no_split_modules


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3", *HYBRID_CASES])
def test_copies(case: str, way: str) -> None:
    model = with_states(case)
    twin = COPIES[way](model)
    assert type(twin) is type(model)
    assert plan_of(twin) == plan_of(model)
    for ours, theirs in zip(model.modules(), twin.modules(), strict=True):
        assert type(ours) is type(theirs)
    ids = random_ids(2, 20)
    assert torch.equal(logits_of(twin, ids), logits_of(model, ids))
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(twin.generate(ids, **settings), model.generate(ids, **settings))
    kinds = (LatentAttention, RecurrentMixer)
    assert any(isinstance(module, kinds) for module in twin.modules())


def test_copy_with_the_source_inside() -> None:
    model = converted_copy(
        tiny_model("llama"), 4.0, "auto", metric="none", store_original_weights=True
    )
    twin = torch_saved(model)
    assert torch.equal(logits_of(twin, random_ids(1, 9)), logits_of(model, random_ids(1, 9)))


def generate_in_child(model: PreTrainedModel, ids: torch.Tensor, path: str) -> None:
    torch.save(model.generate(ids, max_new_tokens=3, do_sample=False), path)


@pytest.mark.slow
def test_a_spawned_process_takes_a_model(tmp_path: Path) -> None:
    model, ids = with_states("granitemoehybrid"), random_ids(1, 8)
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=generate_in_child, args=(model, ids, str(tmp_path / "ids")))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    expected = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(torch.load(tmp_path / "ids"), expected)


def test_models_around_one_config() -> None:
    """Conversion is the model's, the config may be shared."""
    source = tiny_model("llama")
    twin = type(source)(source.config)
    before = source.config.to_dict()
    convert_to_mla(source, 4.0, use_calibration=False, verbose=False)
    assert twin.config is source.config
    assert source.config.to_dict() == before
    assert is_converted(source)
    assert not is_converted(twin)
    assert not is_converted(AutoModelForCausalLM.from_config(source.config))
    convert_to_mla(twin, 2.0, use_calibration=False, verbose=False)
    assert plan_of(twin) != plan_of(source)


def test_saving_leaves_a_shared_config_alone(tmp_path: Path) -> None:
    source = tiny_model("llama")
    twin = type(source)(source.config)
    convert_to_mla(source, 4.0, use_calibration=False, verbose=False)
    before = source.config.to_dict()
    source.to(torch.float16).save_pretrained(tmp_path / "converted")
    assert source.config.to_dict() == before
    twin.save_pretrained(tmp_path / "twin")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "twin")
    assert type(loaded) is type(twin)
    assert not is_converted(loaded)


def test_a_class_without_a_plan() -> None:
    model = pair("llama", "auto", ratio=4.0, metric="activation").converted
    assert isinstance(model, LatentModel)
    with pytest.raises(UnsupportedModelError, match=r"LatentLlama.* around a plan, .*give plan="):
        type(model)(model.config)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trainer_computes_the_loss_of_a_causal_model(smoothing: float, tmp_path: Path) -> None:
    """transformers shifts labels by the name of the class when it smooths them."""
    source, model = pair("llama").both()
    ids = random_ids(2, 12)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    losses = []
    for one in (source, model):
        arguments = TrainingArguments(
            tmp_path, label_smoothing_factor=smoothing, report_to=[], use_cpu=True
        )
        trainer = Trainer(copy.deepcopy(one), arguments)
        losses.append(trainer.compute_loss(trainer.model, dict(inputs)).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
