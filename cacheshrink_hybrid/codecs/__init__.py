"""Few-bit codes of latents: levels, and rows of bytes."""

from .row_format import RowFormat, Run
from .rows import RowCodec

__all__ = ["RowCodec", "RowFormat", "Run"]
