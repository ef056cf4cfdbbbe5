"""The cache of an encoder-decoder model: two pools, of the decoder's tokens and of what the encoder
puts out.

A sequence is as long in one as the text is so far, in the other as the encoder's output. Beams and
repeated sequences share frames in both, and nothing is appended to the latter, so that nothing of
it is ever copied.
"""

from __future__ import annotations

from transformers import Cache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel

from ..families import model_spec
from ..kernels.backend import Backend
from ..spec import ModelSpec
from .dense_cache import LatentCache
from .hybrid_cache import HybridCache
from .planned_layout import PlannedLayout, layout_of


class CrossCache(HybridCache):
    """What cross-attention remembers of an encoder's output."""

    def _layout_of(self, model: PreTrainedModel) -> PlannedLayout:
        return layout_of(model, crosses=True)

    def _spec(self) -> ModelSpec:
        cross = model_spec(self.config).cross
        assert cross is not None, "models of this config read an encoder's output"
        return cross


def pooled_pair(
    config: PretrainedConfig, *, max_bytes: int | None = None, backend: Backend = "auto"
) -> EncoderDecoderCache:
    """A cache of two pools, for the decoder of a model of this config.

    Args:
        max_bytes: most bytes that each of them may take; None for no limit.
        backend: see `HybridCache`.
    """
    return EncoderDecoderCache(
        HybridCache(config, max_bytes=max_bytes, backend=backend),
        CrossCache(config, max_bytes=max_bytes, backend=backend),
    )


def dense_pair(config: PretrainedConfig, *, offloading: bool = False) -> EncoderDecoderCache:
    """A cache of two `LatentCache`s."""
    return EncoderDecoderCache(
        LatentCache(config=config, offloading=offloading),
        LatentCache(config=config, offloading=offloading),
    )


def parts_of(cache: Cache) -> tuple[Cache, ...]:
    """A cache's parts: that of the decoder's tokens, and that of an encoder's output if there is
    one."""
    if isinstance(cache, EncoderDecoderCache):
        return cache.self_attention_cache, cache.cross_attention_cache
    return (cache,)
