"""Caches for models."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from ..kernels.backend import Backend, check_backend
from ..placement import input_device
from ..pool.memory import decoding_backend
from .hybrid_cache import HybridCache


def make_cache(
    model: PreTrainedModel, *, max_bytes: int | None = None, backend: Backend | None = None
) -> HybridCache:
    """An empty cache for `model`, converted or not: the one that `generate()` builds itself.

    Args:
        max_bytes: most bytes that the arena may take; None for no limit.
        backend: of decoding, see `HybridCache`; None for the model's `kernel_backend`.

    Raises:
        KernelUnavailableError: `triton` or `cpu` cannot run on the model's device.
        UnsupportedModelError: the model's config does not tell what it stores.
    """
    chosen: Any = backend or getattr(model, "kernel_backend", "auto")
    decoding_backend(check_backend(chosen), input_device(model))
    config = model.config.get_text_config(decoder=True)
    made = HybridCache(config, max_bytes=max_bytes, backend=chosen)
    made.plan_for(model)
    return made
