"""A source's projections are taken by what they compute, or refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.errors import UnsupportedModelError
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, logits_of, random_ids, unchanged
from tests.tolerances import assert_same_logits


class Scaled(nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


class Wrapper(nn.Module):
    """Something else than a linear layer, in its place."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner, self.in_features = inner, inner.in_features

    @property
    def weight(self):
        return self.inner.weight

    def forward(self, x):
        return 1.5 * self.inner(x)


def set_class(layer: nn.Module) -> None:
    if type(layer) is nn.Linear:
        layer.__class__ = Scaled


def hook(function) -> Callable[[nn.Module], object]:
    return lambda layer: layer.register_forward_hook(lambda _module, _args, out: function(out))


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "parametrized": parametrizations.weight_norm,
    "pruned": lambda layer: prune.random_unstructured(layer, "weight", 0.4),
    "subclass": set_class,
    "hook": hook(lambda output: 1.2 * output + 0.3),
}
NAMES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "gpt2": ["c_attn"],
    "phi3": ["qkv_proj"],
}


def source_of(case: str, change: Callable[[nn.Module], object]):
    source = tiny_model(case)
    for name, layer in list(source.named_modules()):
        if name.rpartition(".")[2] in NAMES[case]:
            change(layer)
    return source


def convert(model, **settings) -> None:
    settings = {"compression_ratio": 1.0, "cache_bits": 16, "metric": "score", **settings}
    convert_model(
        model, CompressionConfig(compression_method="joint", **settings), calibration_ids()
    )


@pytest.mark.parametrize("metric", ["none", "fisher", "score"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", NAMES)
def test_identity(case: str, change: str, metric: str) -> None:
    source, ids = source_of(case, CHANGES[change]), random_ids(2, 10)
    due = logits_of(source, ids)
    convert(source, metric=metric)
    assert_same_logits(logits_of(source, ids), due)


def test_other_modules_in_the_place_of_linear_layers() -> None:
    source, ids = tiny_model("llama"), random_ids(2, 10)
    for layer in source.model.layers:
        layer.self_attn.k_proj = Wrapper(layer.self_attn.k_proj)
    due = logits_of(source, ids)
    convert(source)
    assert_same_logits(logits_of(source, ids), due)


@pytest.mark.parametrize("case", NAMES)
def test_what_is_not_linear_is_refused(case: str) -> None:
    source = source_of(case, hook(torch.relu))
    with unchanged(source), pytest.raises(UnsupportedModelError, match="in the place of a linear"):
        convert(source)


@pytest.mark.parametrize(("case", "name"), [("bamba", "in_proj"), ("jamba", "x_proj")])
def test_mixers_whose_weights_cannot_be_folded_are_refused(case: str, name: str) -> None:
    source = tiny_model(case)
    for path, layer in list(source.named_modules()):
        if path.endswith(name):
            parametrizations.weight_norm(layer)
    with pytest.raises(UnsupportedModelError, match=rf"mamba\.{name}\.weight is parametrized"):
        convert(source, state_ratio=2.0, metric="activation")
