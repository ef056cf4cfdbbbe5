"""Heads of tiny converted models."""

from __future__ import annotations

from typing import Any

from cacheshrink_hybrid.latents.attention.head import LatentHead
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.models import pair


def head_of(case: str, method: str, *, windowed: bool | None = None, **settings: Any) -> LatentHead:
    """The head of a model's first layer, at a quarter of the source's bytes.

    Args:
        windowed: only of layers with a sliding window, or only of those without.
        settings: of the conversion.
    """
    model = pair(case, method, 4.0, **{"cache_bits": "auto", **settings}).converted
    heads = [module.head for module in model.modules() if isinstance(module, LatentAttention)]
    return next(h for h in heads if windowed is None or windowed == (h.window is not None))
