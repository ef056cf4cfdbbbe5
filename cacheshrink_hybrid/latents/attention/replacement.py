"""Which class takes the place of a source's attention module."""

from __future__ import annotations

from typing import Any

from ...derived_class import derived_class
from .biased import BiasedAttention
from .cross import CrossAttention
from .encoded import NormedLatentAttention
from .module import LatentAttention
from .native import NativeLatentAttention
from .native_parts import NativeParts
from .normed_parts import NormedParts
from .parts import AttentionParts
from .reading import ReadingAttention
from .relative_bias import BiasedParts

_CLASSES: dict[type[AttentionParts], Any] = {
    AttentionParts: LatentAttention,
    BiasedParts: BiasedAttention,
    NativeParts: NativeLatentAttention,
    NormedParts: NormedLatentAttention,
}


def reading_attention_class(source: Any) -> Any:
    """The class that takes the place of a source module which reads what another one stores."""
    cls: Any = type(source)
    return derived_class(ReadingAttention, cls)


def latent_attention_class(parts: AttentionParts) -> Any:
    """The class that takes a source's place: a subclass of its attention as well, since
    transformers finds the modules whose attention weights it records by isinstance."""
    source: Any = type(parts.source)
    return derived_class(CrossAttention if parts.crosses else _CLASSES[type(parts)], source)
