"""Configs that no row describes are refused from the config alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig

from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import layout_spec, model_spec, read_attention
from tests.families.tiny_configs import tiny_model

OF_THEIR_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "heads": ("llama", {"per_layer_config": {1: {"num_key_value_heads": 4}}}),
    "head-width": ("llama", {"per_layer_config": {1: {"head_dim": 32}}}),
    "windows": ("mistral", {"sliding_window": 8, "per_layer_config": {1: {"sliding_window": 16}}}),
}


@pytest.mark.parametrize("name", OF_THEIR_OWN)
@pytest.mark.parametrize("spec", [model_spec, layout_spec])
def test_layers_with_sizes_of_their_own(name: str, spec) -> None:
    """transformers raises for such an attribute, also where a default is given."""
    model_type, values = OF_THEIR_OWN[name]
    config = AutoConfig.for_model(model_type, num_hidden_layers=2, **values)
    with pytest.raises(UnsupportedModelError, match=rf"{model_type} config .* sizes of their own"):
        spec(config)


@pytest.mark.parametrize("dropout", [0.5, nn.Dropout(0.5)], ids=["number", "module"])
def test_a_dropout_that_would_be_lost(dropout) -> None:
    """It changes nothing but training, so no comparison of logits would miss it."""
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[1].self_attn.residual_dropout = dropout
    with pytest.raises(UnsupportedModelError, match=r"layer 1 .*residual_dropout is a dropout"):
        read_attention(model, model_spec(model.config))
