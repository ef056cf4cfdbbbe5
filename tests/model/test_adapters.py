"""Adapters of peft on converted models, and where they are refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations import peft as integration

from cacheshrink_hybrid import convert_to_mla, load_mla_model, make_cache, save_mla_model
from cacheshrink_hybrid.errors import ConfigError, NotSupportedError, UnsupportedModelError
from cacheshrink_hybrid.model.adapters import adapted_modules
from cacheshrink_hybrid.training import MLATrainer
from cacheshrink_hybrid.training.nested import cut_ranks
from tests.families.tiny_configs import tiny_model
from tests.models import logits_in_pieces, logits_of, pair, random_ids, unchanged

USUAL = ["q_proj", "k_proj", "v_proj", "o_proj"]
THERE = ["k_b_proj", "kv_a_proj", "o_proj", "q_proj", "v_b_proj"]


def converted(case: str = "llama") -> PreTrainedModel:
    return copy.deepcopy(pair(case, "joint", 2.0, metric="activation").converted)


def lora(targets: str | list[str] | None, **settings) -> LoraConfig:
    return LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **settings)


@pytest.fixture
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 asks for a newer peft than there is, and works with this one."""
    monkeypatch.setattr(integration, "MIN_PEFT_VERSION", "0.20.0")


@pytest.mark.parametrize("targets", ["all-linear", THERE, r".*self_attn\..*proj"], ids=str)
def test_targets_that_are_there(targets) -> None:
    model = converted()
    get_peft_model(model, lora(targets))
    adapted = {name.rpartition(".")[2] for name in adapted_modules(model)}
    assert set(THERE) <= adapted


@pytest.mark.parametrize(
    ("case", "targets", "settings"),
    [
        ("llama", USUAL, {}),
        ("llama", USUAL, {"layers_to_transform": [1]}),
        ("llama", ["q_proj", "v_proj"], {}),
        ("llama", None, {}),  # peft's own choice for a Llama, ["q_proj", "v_proj"]
        ("llama", r".*\.(q|k)_proj", {}),
        ("gpt2", ["c_attn", "c_proj"], {}),
        ("phi3", ["qkv_proj", "o_proj"], {}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("any_peft")
def test_targets_that_conversion_replaced(case: str, targets, settings: dict) -> None:
    """Refused with the names that are there, and nothing is left of the attempt."""
    for put in (get_peft_model, PreTrainedModel.add_adapter):
        model = converted(case)
        due = logits_of(model, random_ids(1, 9))
        with pytest.raises(ConfigError, match=r"keys and values come from kv_a_proj .*k_b_proj"):
            put(model, lora(targets, **settings))
        assert not adapted_modules(model) and not hasattr(model, "peft_config")
        assert torch.equal(logits_of(model, random_ids(1, 9)), due)
        put(model, lora(["q_proj", "kv_a_proj"]))
        assert adapted_modules(model)


@pytest.mark.usefixtures("any_peft")
def test_a_second_adapter_that_is_refused_leaves_the_first() -> None:
    model = converted()
    model.add_adapter(lora(["kv_a_proj", "q_proj"]))
    due = logits_of(model, random_ids(1, 9))
    with pytest.raises(ConfigError, match="adapter 'other' has target_modules for k_proj, v_proj"):
        model.add_adapter(lora(USUAL), "other")
    assert list(model.peft_config) == ["default"]
    model.set_adapter("default")
    assert torch.equal(logits_of(model, random_ids(1, 9)), due)


def test_an_adapter_of_the_source_is_refused(tmp_path: Path) -> None:
    get_peft_model(tiny_model("llama"), lora(USUAL)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="trained on the source"):
        PeftModel.from_pretrained(converted(), tmp_path)


@pytest.mark.usefixtures("any_peft")
def test_save_and_load_an_adapter(tmp_path: Path) -> None:
    """As transformers does it: the model as it was, and the adapter by itself."""
    save_mla_model(converted(), None, tmp_path / "model")
    model = load_mla_model(tmp_path / "model")[0]
    model.add_adapter(lora("all-linear"))
    model.eval()
    due = logits_of(model, random_ids(2, 9))
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "model")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits_of(found, random_ids(2, 9)), due)
    found = load_mla_model(tmp_path / "model")[0]
    found.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits_of(found, random_ids(2, 9)), due)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_switched_and_merged_adapters_decode_as_they_pass(kind: str) -> None:
    model, ids = converted(), random_ids(2, 12)
    plain = logits_of(model, ids)
    adapted = get_peft_model(model, lora("all-linear", use_dora=kind == "dora")).eval()
    with_adapter = logits_of(adapted, ids)

    def decoded() -> torch.Tensor:
        return logits_in_pieces(model, ids, [8, 1, 1, 1, 1], make_cache(model))

    torch.testing.assert_close(decoded(), with_adapter, rtol=0, atol=1e-5)
    with adapted.disable_adapter():
        torch.testing.assert_close(decoded(), plain, rtol=0, atol=1e-5)
    adapted.merge_adapter()
    torch.testing.assert_close(decoded(), with_adapter, rtol=0, atol=1e-4)
    adapted.unmerge_adapter()
    torch.testing.assert_close(decoded(), with_adapter, rtol=0, atol=1e-4)


def test_merged_models_are_saved(tmp_path: Path) -> None:
    merged = get_peft_model(converted(), lora("all-linear")).merge_and_unload().eval()
    save_mla_model(merged, None, tmp_path)
    found = load_mla_model(tmp_path)[0]
    assert torch.equal(logits_of(found, random_ids(1, 9)), logits_of(merged, random_ids(1, 9)))


def test_prompt_tuning() -> None:
    settings = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adapted = get_peft_model(converted(), settings).eval()
    ids = random_ids(1, 9)
    with torch.no_grad():
        whole = adapted(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1)
    tokens = adapted.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert tokens[0, 9] == whole


@pytest.mark.parametrize("case", ["llama", "llama-mqa", "gpt2"])
def test_prefixes_are_keys_and_values(case: str) -> None:
    settings = PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    adapted = get_peft_model(converted(case), settings).eval()
    with torch.no_grad(), pytest.raises(NotSupportedError, match=r"layer 0 .* as prefix tuning"):
        adapted(input_ids=random_ids(1, 9))


def test_one_parameter_of_heads_with_channels_of_their_own() -> None:
    model = copy.deepcopy(pair("llama", "per_head", 2.0, metric="activation").converted)
    ids = random_ids(2, 12)
    plain = logits_of(model, ids)
    get_peft_model(model, lora([], target_parameters=["k_b_proj.weight"])).eval()
    whole = logits_of(model, ids)
    assert (whole - plain).abs().max() > 0.05
    decoded = logits_in_pieces(model, ids, [8, 1, 1, 1, 1])
    torch.testing.assert_close(decoded, whole, rtol=0, atol=1e-5)


USES = {
    "converting": lambda model, _: convert_to_mla(model, use_calibration=False),
    "saving": lambda model, folder: save_mla_model(model, None, folder),
    "MLATrainer": lambda model, _: MLATrainer(model, None),
    "cutting ranks": lambda model, _: cut_ranks(model, 0.5),
}


@pytest.mark.parametrize("use", USES)
def test_uses_that_take_plain_models(use: str, tmp_path: Path) -> None:
    model = tiny_model("llama") if use == "converting" else converted()
    adapted = get_peft_model(model, lora("all-linear"))
    for given, words in (
        (adapted, rf"{use} takes the plain model that this PeftModel .*merge_and_unload\(\)"),
        (model, rf"adapters of peft on model\.layers\.0\.\S+, .* more, and {use} takes"),
    ):
        with unchanged(model), pytest.raises(UnsupportedModelError, match=words):
            USES[use](given, tmp_path)


def test_a_directory_with_an_adapter_is_not_converted(tmp_path: Path) -> None:
    source = tiny_model("llama")
    source.name_or_path = "the/base"
    get_peft_model(source, lora(USUAL)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"an adapter of peft for the model 'the/base'"):
        convert_to_mla(tmp_path, use_calibration=False)
