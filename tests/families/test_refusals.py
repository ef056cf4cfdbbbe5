"""Configs that no row describes are refused from the config alone."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from cacheshrink_hybrid.errors import UnsupportedModelError
from cacheshrink_hybrid.families import layout_spec, model_spec

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
