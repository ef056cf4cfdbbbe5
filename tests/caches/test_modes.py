"""A cache goes from call to call, whichever of torch's modes each of them is made in."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from cacheshrink_hybrid.cache_argument import cache_argument
from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.conversion.convert import convert_model
from cacheshrink_hybrid.errors import NotSupportedError
from tests.families.tiny_configs import tiny_model
from tests.models import calibration_ids, converted_copy, pair, random_ids

IDS = random_ids(2, 19)
STATES = {"state_ratio": 2.0, "state_dtype": "int8", "replay_length": 3}
CODED = {"ratio": 3.0, "cache_bits": "auto"}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "attention": ("llama", CODED),
    "uncoded": ("gpt2", {}),
    "exact": ("llama", {**CODED, "exact_sinks": 2, "exact_window": 4}),
    "hybrid": ("granitemoehybrid", {**CODED, **STATES}),
    "states-as-they-are": ("granitemoehybrid", CODED),
}
MODES: dict[str, Any] = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "grad": nullcontext,
}
WAYS = [(a, b) for a in MODES for b in MODES if a != b]


def fed(model: PreTrainedModel, cache: Cache, start: int, lengths: list[int]) -> Tensor:
    given = {cache_argument(model.forward): cache}
    for length in lengths:
        logits = model(IDS[:, start : start + length], **given).logits
        start += length
    return logits


@pytest.mark.parametrize("before", [[9], [9, 1, 1]])
@pytest.mark.parametrize(("first", "then"), WAYS)
@pytest.mark.parametrize("kind", ["made", "dynamic"])
@pytest.mark.parametrize("name", MODELS)
def test_filled_in_one_mode_and_gone_on_with_in_another(
    name: str, kind: str, first: str, then: str, before: list[int]
) -> None:
    if kind == "dynamic" and name == "states-as-they-are":
        pytest.skip("keeps states that only their own mode can write to")
    case, settings = MODELS[name]
    model, start = pair(case, **settings).converted, sum(before)
    results = []
    for a, b in ((first, then), ("no_grad", "no_grad")):
        cache = make_cache(model) if kind == "made" else DynamicCache(config=model.config)
        with MODES[a]():
            fed(model, cache, 0, before)
        with MODES[b]():
            logits = fed(model, cache, start, [1, 1, 4])
            if b == "grad" and name != "states-as-they-are":
                logits.sum().backward()
        with MODES[a]():
            results.append(fed(model, cache, start + 6, [1]).detach().clone())
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


def test_tables_of_angles_serve_every_mode() -> None:
    """Those that a first call in inference mode made, too."""
    model = converted_copy(tiny_model("llama"), **CODED)
    for mode in ("inference", "grad"):
        cache = make_cache(model)
        with MODES[mode]():
            logits = fed(model, cache, 0, [9, 1, 4])
    logits.sum().backward()


def test_converting_inside_inference_mode() -> None:
    source = copy.deepcopy(tiny_model("granitemoehybrid"))
    with torch.inference_mode():
        made_inside = copy.deepcopy(source)
        converted = converted_in_place(source)
    assert not any(tensor.is_inference() for tensor in converted.parameters())
    converted.train()(IDS, labels=IDS).loss.backward()
    with pytest.raises(NotSupportedError, match=r"made inside torch.inference_mode\(\)"):
        converted_in_place(made_inside)


def converted_in_place(model: PreTrainedModel) -> PreTrainedModel:
    """Converted by what learns from gradients."""
    config = CompressionConfig(compression_ratio=2.0, metric="fisher", **STATES)
    convert_model(model, config, calibration_ids())
    return model
