"""How latents and states are written as bytes: formats and constants, for kernels too, and coders
in plain torch."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .row_format import RowFormat
    from .rows import RowCodec

__all__ = ["RowCodec", "RowFormat"]
__getattr__, __dir__ = lazy_names(__name__, {"RowCodec": "rows", "RowFormat": "row_format"})
