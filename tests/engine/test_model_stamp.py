"""Changes of a model are noticed, once each."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from cacheshrink_hybrid.engine.model_stamp import ModelStamp
from tests.models import pair


def adapted() -> nn.Module:
    model = copy.deepcopy(pair("llama", "joint", 2.0, metric="activation").converted)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, config).eval().get_base_model()


def optimise(model: nn.Module) -> None:
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1  # type: ignore[union-attr, index, operator]


def overwrite(model: nn.Module) -> None:
    weight = model.lm_head.weight
    weight.data.copy_(2 * weight.data)  # type: ignore[union-attr, operator]


def exchange(model: nn.Module) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # type: ignore


def move(model: nn.Module) -> None:
    model.lm_head.weight.data = model.lm_head.weight.data.clone()  # type: ignore[union-attr]


def switch_off(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.enable_adapters(False)


def scale(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(2.0)


CHANGES = [optimise, overwrite, exchange, move, switch_off, scale, nn.Module.train]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed_once(change) -> None:
    model = adapted()
    stamp = ModelStamp(model)
    assert not stamp.has_changed()
    change(model)
    assert stamp.has_changed()
    assert not stamp.has_changed()


def test_what_a_forward_pass_leaves_is_no_change() -> None:
    model = adapted()
    stamp = ModelStamp(model)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    assert not stamp.has_changed()


@pytest.mark.parametrize("make", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_looks_at_its_own_model(make) -> None:
    model = copy.deepcopy(pair("llama", "joint", 2.0, metric="activation").converted)
    stamp = ModelStamp(model)
    twin = make(stamp)
    optimise(model)
    assert not twin.has_changed()
    optimise(twin.model)
    assert twin.has_changed() and stamp.has_changed()


def test_weights_of_any_layout() -> None:
    """Expanded, transposed, empty, of no device, of inference mode."""
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(1).expand(5, 3), requires_grad=False)
    model.b = nn.Parameter(torch.ones(3, 4).T, requires_grad=False)
    model.c = nn.Parameter(torch.ones(0, 4), requires_grad=False)
    model.d = nn.Parameter(torch.ones(2, 2, device="meta"), requires_grad=False)
    with torch.inference_mode():
        model.register_buffer("e", torch.ones(7))
    stamp = ModelStamp(model)
    assert not stamp.has_changed()
    model.b.data.mul_(2)
    assert stamp.has_changed()
