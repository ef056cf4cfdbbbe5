"""Compressed modules take over which weights train from those that they replace."""

from __future__ import annotations

import pytest

from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy


@pytest.mark.parametrize("way", ["all", "keys", "values"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "granitemoehybrid"])
def test_new_projections_train_where_those_they_replace_do(case: str, way: str) -> None:
    source = tiny_model(case)
    source.requires_grad_(False)
    if way != "all":
        names = {"keys": ("k_proj", "c_attn"), "values": ("v_proj", "c_attn")}[way]
        for name, parameter in source.named_parameters():
            parameter.requires_grad_(any(part in name for part in names))
    model = converted_copy(source, 4.0, "auto", metric="activation")
    flags = {
        name.split(".")[-2]: parameter.requires_grad
        for name, parameter in model.named_parameters()
        if name.split(".")[-2] in ("kv_a_proj", "k_b_proj", "v_b_proj")
    }
    fused = case == "gpt2"
    assert flags == {
        "kv_a_proj": way != "all",
        "k_b_proj": way == "keys" or (fused and way != "all"),
        "v_b_proj": way == "values" or (fused and way != "all"),
    }
