"""The Auto classes load saved models with the keywords of transformers, and refuse others."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    pipeline,
)

from cacheshrink_hybrid import load_mla_model, plan_of, save_mla_model
from cacheshrink_hybrid.checkpoint.auto_config import CacheShrinkConfig
from cacheshrink_hybrid.checkpoint.savable_model import SavableModel
from cacheshrink_hybrid.errors import CheckpointError, ConfigError
from tests.families.tiny_configs import CASES, tiny_model
from tests.models import logits_of, pair, random_ids
from tests.texts import word_tokenizer


def converted(case: str = "llama") -> PreTrainedModel:
    return pair(case, "auto", ratio=4.0, metric="activation").converted


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint that tests only read."""
    directory = tmp_path_factory.mktemp("saved")
    save_mla_model(converted(), word_tokenizer(), directory)
    return directory


def values_of(config: PretrainedConfig) -> dict:
    """Those that do not say where it was read."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


LOADERS: dict[str, Callable] = {
    "AutoModel": AutoModelForCausalLM.from_pretrained,
    "own class": type(converted()).from_pretrained,
    "any class": SavableModel.from_pretrained,
    "load_mla_model": lambda path, **kwargs: load_mla_model(path, **kwargs)[0],
}
loaders = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@loaders
def test_values_of_the_config_are_keywords(load: Callable, saved: Path) -> None:
    model = load(saved, use_cache=False, attn_implementation="eager", rms_norm_eps=0.5)
    assert not model.config.use_cache
    assert model.config.rms_norm_eps == 0.5
    assert model.config._attn_implementation == "eager"
    output = model(random_ids(1, 8), output_attentions=True)
    assert len(output.attentions) == model.config.num_hidden_layers
    assert output.past_key_values is None
    assert values_of(load(saved).config) == {
        **values_of(converted().config),
        "architectures": ["LlamaForCausalLM"],
    }


@loaders
@pytest.mark.parametrize("dtype", ["float16", torch.float16])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype(name: str, dtype: str | torch.dtype, load: Callable, saved: Path) -> None:
    if load is LOADERS["load_mla_model"] and name == "torch_dtype":
        pytest.skip("it has a dtype of its own")
    assert load(saved, **{name: dtype}).dtype == torch.float16


@loaders
@pytest.mark.parametrize(
    "ways",
    [
        {"low_cpu_mem_usage": True},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}},
        {"use_safetensors": True, "variant": None, "quantization_config": None},
        {"revision": "main", "token": None, "local_files_only": True, "force_download": False},
        {"generation_config": GenerationConfig(max_length=17)},
        {"verify_weights": False},
        {"trust_remote_code": False},
    ],
    ids=str,
)
def test_other_ways_of_loading(ways: dict, load: Callable, saved: Path) -> None:
    model = load(saved, **ways)
    ids = random_ids(1, 12)
    assert torch.equal(logits_of(copy.deepcopy(model), ids), logits_of(converted(), ids))
    if "generation_config" in ways:
        assert model.generation_config.max_length == 17


@loaders
def test_nothing_is_allocated_on_the_meta_device(load: Callable, saved: Path) -> None:
    assert {p.device.type for p in load(saved, device_map="meta").parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["AutoModel", "own class", "any class"])
def test_loading_info(name: str, saved: Path) -> None:
    model, info = LOADERS[name](saved, output_loading_info=True)
    assert plan_of(model) == plan_of(converted())
    assert not info["missing_keys"]


REFUSED = {
    "variant": ("fp16", "saved in one precision"),
    "use_safetensors": (False, "pickled weights are not read"),
    "ignore_mismatched_sizes": (True, "loading is strict"),
    "tp_plan": ("auto", "do not know latent projections"),
    "key_mapping": ({"a": "b"}, "names that saving gave them"),
    "quantization_config": ({"quant_method": "torchao"}, "kept in floating point"),
    "use_cash": (False, "takes no use_cash; beside its own arguments it takes .*dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_keywords(name: str, saved: Path) -> None:
    value, words = REFUSED[name]
    for load in LOADERS.values():
        with pytest.raises(ConfigError, match=words):
            load(saved, **{name: value})


@pytest.mark.parametrize("case", CASES)
def test_auto_config_answers_as_the_source_does(case: str, tmp_path: Path) -> None:
    source, model = pair(case, "auto", ratio=4.0, metric="activation").both()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, CacheShrinkConfig)
    assert isinstance(config, type(source.config))
    assert config.model_type == "cacheshrink_hybrid"
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
        assert getattr(config, name, None) == getattr(source.config, name, None)
    assert config.get_text_config().vocab_size == source.config.vocab_size
    source.config.save_pretrained(tmp_path / "source")
    expected = AutoConfig.from_pretrained(tmp_path / "source", dtype=config.dtype)
    assert values_of(config.source()) == {
        **values_of(expected),
        "architectures": [type(source).__name__],
    }
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert type(twin) is type(config)
        assert twin.to_dict() == config.to_dict()


def test_a_changed_config_is_used(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved, use_cache=False)
    config.rms_norm_eps = 0.25
    model = AutoModelForCausalLM.from_pretrained(saved, config=config)
    assert (model.config.use_cache, model.config.rms_norm_eps) == (False, 0.25)
    assert type(model.config) is type(converted().config)


UNFIT = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "vocab_size": 50,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 8,
    "head_dim": 4,
}


@loaders
@pytest.mark.parametrize("name", UNFIT)
def test_values_that_the_weights_do_not_fit(name: str, load: Callable, saved: Path) -> None:
    """The argument is named, and not a damage of the checkpoint."""
    message = rf"saved with other values than {name}={UNFIT[name]}, and its weights do not fit"
    with pytest.raises(ConfigError, match=message):
        load(saved, **{name: UNFIT[name]})
    config = AutoConfig.from_pretrained(saved)
    setattr(config, name, UNFIT[name])
    with pytest.raises(ConfigError, match=message):
        load(saved, config=config)


def test_values_of_another_type(saved: Path) -> None:
    with pytest.raises(ConfigError, match="hidden_size='x' is no value that a LlamaConfig takes"):
        SavableModel.from_pretrained(saved, hidden_size="x")


@loaders
@pytest.mark.parametrize("device_map", ["banana", {"": "banana"}, "cuda:99", 77], ids=str)
def test_devices_that_are_not_here(device_map, load: Callable, saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"device_map=.*give"):
        load(saved, device_map=device_map)


def test_a_config_of_something_else(saved: Path) -> None:
    with pytest.raises(ConfigError, match="is no config of a causal language model; give what Au"):
        SavableModel.from_pretrained(saved, config="config.json")


def test_model_from_config_alone(saved: Path) -> None:
    """The saved config makes a converted model, a converted model's own a source."""
    empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved), dtype=torch.float16)
    assert type(empty) is type(converted())
    assert plan_of(empty) == plan_of(converted())
    assert empty.dtype == torch.float16
    source = AutoModelForCausalLM.from_config(converted().config)
    assert type(source) is type(tiny_model("llama"))


def test_subfolder(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "deep")
    for load in (*LOADERS.values(), AutoTokenizer.from_pretrained):
        load(tmp_path, subfolder="deep")
    with pytest.raises(CheckpointError, match="is no directory"):
        SavableModel.from_pretrained(tmp_path, subfolder="other")


@loaders
def test_name_on_the_hub(load: Callable, saved: Path, tmp_path: Path) -> None:
    """From the cache, as without a network."""
    repository = tmp_path / "models--someone--small"
    shutil.copytree(saved, repository / "snapshots" / ("b" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    model = load("someone/small", cache_dir=tmp_path)
    assert plan_of(model) == plan_of(converted())
    with pytest.raises((CheckpointError, OSError), match=r"someone/other|find them in the cache"):
        load("someone/other", cache_dir=tmp_path)


def test_pipeline(saved: Path, caplog) -> None:
    """By directory and by object, and no complaint that the class is unknown."""
    model, tokenizer = load_mla_model(saved)
    texts = []
    for given in (str(saved), model):
        generate = pipeline("text-generation", model=given, tokenizer=tokenizer)
        texts.append(generate("the cat", max_new_tokens=4, do_sample=False)[0]["generated_text"])
    assert texts[0] == texts[1]
    assert "is not supported" not in caplog.text
