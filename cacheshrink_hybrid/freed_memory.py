"""Handing memory back to the system."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Give back what the heap holds of freed tensors, on systems whose C library keeps it (glibc).

    Tensors below some 32 MB lie in the heap, which shrinks from its end only: after a pass over
    text it is several times as large as what is in use.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
