"""How many bytes a live cache holds, next to what the plan says it should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..caches import LatentCache, cache_bytes, make_cache
from ..errors import ConfigError
from ..families import model_spec, refuse_encoder
from ..model.attached_plan import is_converted, plan_of
from ..spec import BYTES_16BIT
from .cached_forward import cached_logits
from .defaults import DEFAULT_LENGTHS

PREFILL_CHUNK = 512


@torch.no_grad()
def measure_cache_memory(
    model: PreTrainedModel,
    sequence_lengths: Sequence[int] = DEFAULT_LENGTHS,
    batch_size: int = 1,
) -> dict[str, Any]:
    """Fill real caches and count their bytes: the tensors of a dense cache, and the frames that
    the pooled cache of `generate()` holds for the same sequences.

    Args:
        model: converted or not; its forward pass runs over every length.
        sequence_lengths: tokens per sequence.
        batch_size: sequences.

    Returns:
        `source_bytes_per_token` and `bytes_per_token` at 16 bits per element, their
        `compression_ratio`, `element_bytes` (size of this model's cache elements), and
        `per_sequence_length`: for each length, in bytes of this model's dtype,
        `live_bytes` (counted, keys and values), `expected_bytes` (from the plan), `exact_bytes` (of
        exact rows, which are among both), `source_bytes` (what the uncompressed model would hold),
        the same of recurrent and convolution states,
        which do not grow with the length (`state_bytes`, `expected_state_bytes`,
        `source_state_bytes`), `total_bytes` of both together, and `pooled_bytes` (frames, KV and
        state together). The ratios of source to live bytes, `ratio`, `state_ratio` and
        `total_ratio`, count at 16 bits what has the model's dtype, keys, values and latents that
        are not coded and convolution columns, as the plan does (`kv_16bit`, `state_16bit`: source
        and live bytes so counted); they are None where there is nothing.

    Raises:
        ConfigError: lengths below 2, or beyond the model's positions.
    """
    refuse_encoder(
        model.config, "measuring the cache of a text", "cache_bytes(cache) counts a live one's"
    )
    limit = getattr(model.config, "max_position_embeddings", None)
    for length in sequence_lengths:
        if length < 2 or (limit is not None and length > limit):
            raise ConfigError(
                f"sequence length {length} must lie between 2 and the model's limit of {limit}"
            )
    scale = torch.finfo(model.dtype).bits // 8 / BYTES_16BIT
    layers = _bytes_by_layer(model)
    source_per_token = [source for source, _, _ in layers]
    uncoded_per_token = [0 if coded else stored for _, stored, coded in layers]
    stored_per_token = [stored for _, stored, _ in layers]
    live_per_token = [stored * (1 if coded else scale) for _, stored, coded in layers]
    windows = [
        layer.attention.sliding_window
        for layer in model_spec(model.config).attention_layers
        if layer.attention is not None
    ]
    lengths = {}
    for length in sequence_lengths:
        held = [length if window is None else min(length, window) for window in windows]
        expected = _total(live_per_token, held, batch_size)
        exact = batch_size * plan_of(model).exact_bytes(length) if is_converted(model) else 0
        expected += exact
        source = _total(source_per_token, held, scale * batch_size)
        dense = LatentCache(config=model.config.get_text_config(decoder=True))
        counted = _filled(model, dense, length, batch_size)
        pooled = _filled(model, make_cache(model), length, batch_size)
        as_16bit = (
            _total(source_per_token, held, batch_size),
            counted.kv - _total(uncoded_per_token, held, batch_size * (scale - 1)),
        )
        states = _states(model, length, batch_size, counted.state)
        lengths[length] = {
            "source_bytes": source,
            "expected_bytes": expected,
            "live_bytes": counted.kv,
            "exact_bytes": exact,
            "pooled_bytes": pooled.total,
            "kv_16bit": as_16bit,
            "ratio": _ratio(*as_16bit),
            **states,
            "total_bytes": counted.total,
            "total_ratio": _ratio(
                as_16bit[0] + states["state_16bit"][0], as_16bit[1] + states["state_16bit"][1]
            ),
        }
    return {
        "source_bytes_per_token": sum(source_per_token),
        "bytes_per_token": sum(stored_per_token),
        "compression_ratio": (
            sum(source_per_token) / sum(stored_per_token) if stored_per_token else 1.0
        ),
        "element_bytes": torch.finfo(model.dtype).bits // 8,
        "per_sequence_length": lengths,
    }


def _states(model: PreTrainedModel, length: int, batch_size: int, live: int) -> dict[str, Any]:
    """Bytes of states, counted and as they should be."""
    element_bytes = torch.finfo(model.dtype).bits // 8
    plans = {}
    if is_converted(model):
        plans = {state.layer_idx: state for state in plan_of(model).states}
    source = expected = source_16bit = wider = 0
    for layer in model_spec(model.config).state_layers:
        assert layer.state is not None
        one = layer.state.recurrent_bytes
        one += layer.state.conv_bytes * element_bytes // BYTES_16BIT
        source += one
        source_16bit += layer.bytes_per_sequence
        plan = plans.get(layer.layer_idx)
        if plan is None:
            expected += one
            wider += one - layer.bytes_per_sequence
        else:
            expected += plan.allocated_bytes(length, element_bytes)
            wider += plan.allocated_bytes(length, element_bytes)
            wider -= plan.allocated_bytes(length, BYTES_16BIT)
    as_16bit = (source_16bit * batch_size, live - wider * batch_size)
    return {
        "source_state_bytes": source * batch_size,
        "expected_state_bytes": expected * batch_size,
        "state_bytes": live,
        "state_16bit": as_16bit,
        "state_ratio": _ratio(*as_16bit),
    }


def _ratio(source: float, live: float) -> float | None:
    return source / live if live else None


def _bytes_by_layer(model: PreTrainedModel) -> list[tuple[int, int, bool]]:
    """For every attention layer the bytes per token before and after, at 16 bits per element, and
    whether what is stored is rows of bytes, whose size does not depend on the model's dtype."""
    latents = {
        idx: (latent.bytes_per_token, latent.coded)
        for latent in (plan_of(model).latents if is_converted(model) else ())
        for idx in latent.layer_ids
    }
    return [
        (layer.bytes_per_token, *latents.get(layer.layer_idx, (layer.bytes_per_token, False)))
        for layer in model_spec(model.config).attention_layers
    ]


def _total(per_token: Sequence[float], held: Sequence[int], scale: float) -> int:
    return round(scale * sum(size * tokens for size, tokens in zip(per_token, held, strict=True)))


def _filled(model: PreTrainedModel, cache: LatentCache, length: int, batch_size: int):
    """Bytes after a prefill and one decoded token, which leaves every window at its length."""
    ids = torch.arange(length).expand(batch_size, -1) % model.config.vocab_size
    for part in (ids[:, : length - 1], ids[:, length - 1 :]):
        for _ in cached_logits(model, part, PREFILL_CHUNK, cache):
            pass
    return cache_bytes(cache)
