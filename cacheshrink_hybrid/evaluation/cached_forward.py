"""Feeding tokens on top of a live cache, chunk by chunk, the way generation does."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from ..cache_argument import cache_argument
from ..caches import LatentCache, make_cache
from ..caches.dense_cache import num_cached_tokens
from ..errors import UnsupportedModelError
from ..families import model_spec, refuse_encoder
from ..model.attached_plan import is_converted, plan_of
from ..placement import input_device

SCORING = (
    "its certificate has the loss on every tenth of its calibration_inputs, and "
    "model(**inputs, labels=...) gives that of others"
)
"""What to do with a model that has an encoder."""


def new_cache(model: PreTrainedModel) -> Cache:
    """The cache of `generate()`: ours, or transformers' own for models of families that we do not
    know, which others are measured against."""
    try:
        return make_cache(model)
    except UnsupportedModelError:
        return DynamicCache(config=model.config)


def cached_logits(
    model: PreTrainedModel, ids: Tensor, chunk_length: int, cache: Cache | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (position of the first token, logits (B, chunk, V)) for each chunk of `ids` (B, T).

    Models whose recurrent scan cannot continue from a cache in pieces get all tokens at once, and
    one by one behind a filled cache. Coded recurrent states are coded as often as in decoding,
    however long the chunks.

    Args:
        chunk_length: tokens per forward pass, at most.
        cache: the cache to fill, from where it stands; None for a new one.

    Raises:
        NotSupportedError: the model has an encoder.
    """
    refuse_encoder(model.config, "reading a text through a live cache", SCORING)
    cache = new_cache(model) if cache is None else cache
    if isinstance(cache, LatentCache):
        cache.codes_every_boundary = True
    name = cache_argument(model)
    past = int(num_cached_tokens(cache))
    ids = ids.to(input_device(model))
    num_tokens = ids.shape[1]
    if not continues_in_pieces(model):
        chunk_length = 1 if past else num_tokens
    for start in range(0, num_tokens, chunk_length):
        end = min(start + chunk_length, num_tokens)
        position_ids = torch.arange(past + start, past + end, device=ids.device)[None]
        position_ids = position_ids.expand(ids.shape[0], -1)
        output = model(
            input_ids=ids[:, start:end],
            position_ids=position_ids,
            use_cache=True,
            **{name: cache},
        )
        yield start, output.logits


def continues_in_pieces(model: PreTrainedModel) -> bool:
    """Whether several tokens may follow a cached prefix; False if the family is unknown."""
    try:
        spec = model_spec(model.config)
    except UnsupportedModelError:
        return False
    if spec.continues_in_pieces:
        return True
    ours = {state.layer_idx for state in plan_of(model).states} if is_converted(model) else set()
    return all(layer.layer_idx in ours for layer in spec.state_layers)
