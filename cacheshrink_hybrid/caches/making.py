"""Caches for models."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..families import decoder_config, has_encoder
from ..kernels.backend import Backend, check_backend
from ..placement import input_device
from ..pool.memory import decoding_backend
from .encoder_decoder import pooled_pair
from .hybrid_cache import HybridCache


def make_cache(
    model: PreTrainedModel, *, max_bytes: int | None = None, backend: Backend | None = None
) -> Any:
    """An empty cache for `model`, converted or not: the one that `generate()` builds itself.

    Args:
        max_bytes: most bytes that the arena may take, or each of two; None for no limit.
        backend: of decoding, see `HybridCache`; None for the model's `kernel_backend`.

    Returns:
        A `HybridCache`; of a model with an encoder an `EncoderDecoderCache` of two.

    Raises:
        KernelUnavailableError: `triton` or `cpu` cannot run on the model's device.
        UnsupportedModelError: the model's config does not tell what it stores.
    """
    chosen: Any = backend or getattr(model, "kernel_backend", "auto")
    decoding_backend(check_backend(chosen), input_device(model))
    config = decoder_config(model.config)
    if has_encoder(config):
        pair = pooled_pair(config, max_bytes=max_bytes, backend=chosen)
        for part in (pair.self_attention_cache, pair.cross_attention_cache):
            part.plan_for(model)
        return pair
    made = HybridCache(config, max_bytes=max_bytes, backend=chosen)
    made.plan_for(model)
    return made
