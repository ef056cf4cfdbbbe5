"""Few-bit codes of latents: levels, and rows of bytes."""

from .rows import RowCodec, Run, check_finite

__all__ = ["RowCodec", "Run", "check_finite"]
