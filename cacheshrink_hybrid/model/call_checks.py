"""What a converted model does before every call: it makes a cache where the source would, tells
caches what is stored, and refuses those of another model, and rows of positions or masks that its
latents cannot be read by.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..cache_argument import cache_argument, given_cache
from ..caches import HybridCache, LatentCache
from ..caches.dense_cache import num_cached_tokens
from ..caches.encoder_decoder import dense_pair, parts_of
from ..errors import NotSupportedError
from ..families import decoder_config, has_encoder, model_spec
from ..latents.attention.left_padding import check_padding
from ..latents.attention.module import LatentAttention
from ..latents.attention.slot_rotary import check_positions
from ..states.layer import StateCacheMixin
from .attached_plan import plan_of


def check_calls(model: PreTrainedModel) -> None:
    """Check the rows of every call, on the inner model, which all of them go through, and tell
    caches what is stored."""
    inner = model.base_model
    names = list(inspect.signature(inner.forward).parameters)
    rotates = any(
        module.head.rotary for module in inner.modules() if isinstance(module, LatentAttention)
    )
    if any(latent.keeps_exact for latent in plan_of(model).latents):
        inner.register_forward_pre_hook(partial(_make_cache, names), with_kwargs=True)
    inner.register_forward_pre_hook(partial(_plan_cache, names), with_kwargs=True)
    if rotates or model_spec(model.config).state_layers:
        own_states = frozenset(state.layer_idx for state in plan_of(model).states)
        check = partial(_check_call, names, rotates, own_states)
        inner.register_forward_pre_hook(check, with_kwargs=True)


def _make_cache(
    names: list[str], inner: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    """Where transformers would make a cache that keeps the exact rows of all tokens, a call gets
    one that keeps those which are read."""
    given = dict(zip(names, args, strict=False)) | kwargs
    wanted = given.get("use_cache")
    config = decoder_config(inner.config)
    wanted = config.use_cache if wanted is None else wanted
    learns = inner.training and torch.is_grad_enabled()
    if not wanted or learns or torch.compiler.is_compiling() or given_cache(given) is not None:
        return None
    name = cache_argument(inner)
    place = names.index(name)
    cache = dense_pair(config) if has_encoder(config) else LatentCache(config=config)
    if place < len(args):
        return (*args[:place], cache, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: cache}


def _plan_cache(names: list[str], inner: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Tell a pooled cache what the model stores, if it was made of a config alone, or for another
    mode of the model."""
    cache = given_cache(dict(zip(names, args, strict=False)) | kwargs)
    for part in () if cache is None else parts_of(cache):
        if isinstance(part, HybridCache):
            # No graph is made of that: such a cache is none that a whole graph can be made with.
            torch.compiler.disable(part.plan_for)(inner)


def _check_call(
    names: list[str],
    rotates: bool,
    own_states: frozenset[int],
    inner: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    if torch.compiler.is_compiling():
        return
    given = dict(zip(names, args, strict=False)) | kwargs
    cache = given_cache(given)
    if cache is None or getattr(cache, "slots_are_positions", False):
        return  # sequences of different lengths, which only the cache knows
    for layer_idx, layer in enumerate(cache.layers):
        if isinstance(layer, StateCacheMixin) and layer_idx not in own_states:
            raise NotSupportedError(
                f"layer {layer_idx} of this cache holds states in codes of another model, and the "
                "layer of this one is not converted; give each model a cache of its own"
            )
    past = num_cached_tokens(cache)
    if not isinstance(past, int) or past == 0:
        return  # a static cache counts on the device; looking would stall it
    mask = given.get("attention_mask")
    check_padding(mask)
    if rotates:
        check_positions(given.get("position_ids"), mask, past)
