"""Replaced modules take a cache under every name that transformers uses, and refuse any other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig

from cacheshrink_hybrid import make_cache
from cacheshrink_hybrid.cache_argument import (
    CACHE_ARGUMENTS,
    cache_argument,
    given_cache,
    take_cache,
)
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.models import pair, random_ids

REPLACED = {
    "mistral-window": LatentAttention,
    "gpt_neox": LatentAttention,
    "zamba2": LatentAttention,
    "jamba": RecurrentMixer,
    "bamba": RecurrentMixer,
    "qwen3_next": RecurrentMixer,
}
"""A module of each kind that replaces one of transformers', by case."""


def renamed_to(name: str) -> Callable[[nn.Module, tuple, dict[str, Any]], tuple[tuple, dict]]:
    """A hook that renames the cache of a module's call, as a release of transformers may."""

    def rename(module: nn.Module, args: tuple, given: dict[str, Any]) -> tuple[tuple, dict]:
        caches = [value for value in given.values() if isinstance(value, Cache)]
        others = {key: value for key, value in given.items() if not isinstance(value, Cache)}
        assert len(caches) == 1
        return args, {**others, name: caches[0]}

    return rename


def decoded(case: str, name: str) -> torch.Tensor:
    """Logits of a token after five others, with the replaced modules' caches renamed."""
    settings = {"state_dtype": "float32"} if REPLACED[case] is RecurrentMixer else {}
    model = pair(case, **settings).converted
    modules = [module for module in model.modules() if isinstance(module, REPLACED[case])]
    assert modules
    hooks = [
        module.register_forward_pre_hook(renamed_to(name), with_kwargs=True) for module in modules
    ]
    ids, given = random_ids(1, 6), {cache_argument(model.forward): make_cache(model)}
    try:
        with torch.no_grad():
            model(ids[:, :5], **given)
            return model(ids[:, 5:], **given).logits
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("case", REPLACED)
def test_every_known_name(case: str) -> None:
    results = [decoded(case, name) for name in CACHE_ARGUMENTS]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("case", REPLACED)
def test_an_unknown_name_is_an_error(case: str) -> None:
    with pytest.raises(TypeError, match="'memory', a name of the cache that this package does not"):
        decoded(case, "memory")


def test_the_name_that_a_forward_takes() -> None:
    def oldest(hidden_states, cache_params=None): ...
    def newest(hidden_states, cache=None, past_key_values=None): ...
    def none(hidden_states): ...

    assert (cache_argument(oldest), cache_argument(newest)) == ("cache_params", "cache")
    with pytest.raises(NotSupportedError, match="takes no cache under any of the names"):
        cache_argument(none)


def test_a_module_whose_forward_was_replaced() -> None:
    """By one that takes anything, as tools do that watch calls."""
    model = copy.deepcopy(pair("llama").source)
    name, forward = cache_argument(model), model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)  # noqa: PLW0108
    assert cache_argument(model) == name == cache_argument(forward)


def test_two_caches_are_an_error_and_one_under_two_names_is_not() -> None:
    one, other = DynamicCache(), DynamicCache()
    with pytest.raises(TypeError, match="different caches were given as cache and past_key_values"):
        given_cache({"past_key_values": other, "cache": one})
    arguments = {"past_key_values": one, "cache": one, "layer_past": None, "other": 1}
    assert take_cache(arguments) is one
    assert arguments == {"other": 1}


def test_caches_that_have_no_layers_are_refused() -> None:
    """Pairs of tensors, which old programs keep."""
    model = pair("llama").converted
    pairs = ((torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16)),) * 3
    with pytest.raises(NotSupportedError, match=r"cannot use a tuple as its cache; .*make_cache"):
        model(random_ids(1, 2), **{cache_argument(model.forward): pairs})


def test_continuous_batching_is_refused_in_words() -> None:
    model = pair("llama").converted
    with pytest.raises(NotSupportedError, match=r"cacheshrink_hybrid\.engine\.LLM"):
        model.generate_batch([[5, 6, 7]], generation_config=GenerationConfig(max_new_tokens=2))
