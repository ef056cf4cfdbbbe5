"""Few-bit codes of latents: levels, and rows of bytes."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .row_format import RowFormat, Run
    from .rows import RowCodec

__all__ = ["RowCodec", "RowFormat", "Run"]
__getattr__, __dir__ = lazy_names(
    __name__, {"RowCodec": "rows", "RowFormat": "row_format", "Run": "row_format"}
)
