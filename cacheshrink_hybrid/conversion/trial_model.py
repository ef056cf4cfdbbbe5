"""A small model of a config, with random weights, for trying rows on.

It has few layers, words and experts, and is otherwise like the models of the config. transformers
makes it by `AutoModelForCausalLM`, or, for the text model of a whole, by its causal class or by its
base model alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..checkpoint.load_faults import first_line
from ..errors import UnsupportedModelError

VOCABULARY, WIDTH, EXPERTS = 256, 128, 8
"""Largest vocabulary, inner width of an MLP and number of experts of a small model."""
MOST_NUMBERS = 2**31
"""Parameters of the largest small model, 8 GiB in float32."""
INNER = re.compile(r"(\w*intermediate_size|ffn_dim|ffn_hidden_size|n_inner|inner_dim)\w*")
ROUTED = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts")
GROUPS = ("n_group", "topk_group")
SPECIAL = re.compile(r"\w*_token_id")
GAIN = 2.0
"""Of weights of attention over those that keep the size of their inputs: scores differ then."""
NOISE = 0.2
"""Of norms and biases, whose neutral values would hide where they are applied."""


class BareTextModel(PreTrainedModel):
    """A text model without a head, of those that transformers knows only inside of others."""

    base_model_prefix = "model"

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.model = AutoModel.from_config(config)

    def forward(self, **given: Any) -> Any:
        return self.model(**given)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()


def small_model(
    config: PretrainedConfig, *, seed: int = 0, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of few layers, words and experts that is otherwise like those of `config`, with
    random weights in float32, none of which is neutral.

    Raises:
        UnsupportedModelError: see `row_trial.try_rows`.
    """
    make = _maker(config, trust_remote_code)
    faults: list[str] = []
    for narrow in (True, False):
        try:
            small = _small_config(config, narrow=narrow)
            with torch.device("meta"):
                size = sum(p.numel() for p in make(small).parameters())
            if size <= MOST_NUMBERS:
                torch.manual_seed(seed)
                return _shaken(make(small).float().eval())
            faults.append(
                f"{small.num_hidden_layers} layers have {size:,} parameters, and at most "
                f"{MOST_NUMBERS:,} are tried"
            )
        except Exception as error:  # of any class: it is transformers that makes the model
            faults.append(told(error))
    raise UnsupportedModelError(
        f"no small causal model of model_type={config.model_type!r} can be made: {faults[0]}; give "
        "a config.json of a smaller model of this type"
    )


def told(error: Exception) -> str:
    """An error of foreign code in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def _maker(
    config: PretrainedConfig, trust_remote_code: bool
) -> Callable[[PretrainedConfig], PreTrainedModel]:
    """How models of a config's class are made."""
    if trust_remote_code or type(config) in AutoModelForCausalLM._model_mapping:
        given = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
        return lambda small: AutoModelForCausalLM.from_config(small, **given)
    causal = _causal_class(type(config))
    if causal is not None:
        return causal
    if _stands_alone(type(config)):
        return BareTextModel
    raise UnsupportedModelError(
        f"no small causal model of model_type={config.model_type!r} can be made: transformers has "
        "neither a causal language model of it nor a text model that stands alone"
    )


def _stands_alone(config_class: type[PretrainedConfig]) -> bool:
    """Whether transformers has a base model of such configs; it lists some that it lacks."""
    listed = AutoModel._model_mapping
    try:
        return config_class in listed and listed[config_class] is not None
    except ValueError:
        return False


def _causal_class(config_class: type[PretrainedConfig]) -> type[PreTrainedModel] | None:
    """The causal language model of a config's class that no Auto class lists."""
    name = config_class.__module__.replace(".configuration_", ".modeling_")
    if name == config_class.__module__ or not name.startswith("transformers."):
        return None
    try:
        module = sys.modules.get(name) or import_module(name)
    except ImportError:  # of a package that it needs and that is not installed
        return None
    for found in vars(module).values():
        causal = isinstance(found, type) and found.__name__.endswith("ForCausalLM")
        if causal and getattr(found, "config_class", None) is config_class:
            return found
    return None


def _small_config(config: PretrainedConfig, *, narrow: bool) -> PretrainedConfig:
    """The first layers, at least two, until every kind of layer has come; a small vocabulary, and,
    if `narrow`, few experts and narrow MLPs."""
    values = config.to_dict()
    depth = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or [""] * depth
    kept = max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))
    for name, value in values.items():
        if isinstance(value, list) and len(value) == depth:
            values[name] = value[:kept]
        elif SPECIAL.fullmatch(name):
            values[name] = [0] if isinstance(value, list) else value and 0
        elif not narrow or not isinstance(value, int) or isinstance(value, bool):
            continue
        elif INNER.fullmatch(name):
            values[name] = min(value, WIDTH)
        elif ROUTED.fullmatch(name):
            values[name] = min(value, EXPERTS)
        elif name in GROUPS:
            values[name] = 1
    values["num_hidden_layers"] = min(kept, depth)
    values["vocab_size"] = min(config.vocab_size, VOCABULARY)
    return type(config).from_dict(values)


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inside = "attn" in name.lower() or "attention" in name.lower()
            if parameter.ndim == 1:
                parameter.add_(NOISE * torch.randn_like(parameter))
            elif inside and parameter.ndim == 2:
                nn.init.normal_(parameter, std=GAIN / parameter.shape[1] ** 0.5)
    return model
