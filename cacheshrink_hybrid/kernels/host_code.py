"""Functions compiled by numba for the CPU that they run on.

What was compiled is kept on disk, so that the next process starts at once: in `__pycache__` beside
the source where that can be written to, else in numba's folder among the user's caches, or below
`NUMBA_CACHE_DIR` where that is set; where nothing can be written, every process compiles anew.

Sums may be taken in another order and fused with products; NaN and infinity stay what they are. No
function starts threads, and all let go of the interpreter's lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
REORDERED = {"reassoc", "contract", "nsz"}
PACKAGE = Path(__file__).parents[1]


def compiled(function: Callable) -> Any:
    """`function`, compiled into those that call it."""
    return njit(function, fastmath=REORDERED, **OPTIONS)


def compiled_in_order(function: Callable) -> Any:
    """`compiled`, with every operation as it is written."""
    # Said in words, for a function that says nothing does as the first of its callers.
    return njit(function, fastmath=False, **OPTIONS)


def kept(function: Callable) -> Any:
    """`compiled`, to be called from Python, and kept on disk."""
    try:
        made: Any = njit(function, cache=True, fastmath=REORDERED, **OPTIONS)
    except RuntimeError:  # there is nowhere to keep it
        return compiled(function)
    # numba asks the file of the function alone whether what it kept is still right.
    made._cache._cache_file._source_stamp = sources_stamp()
    return made


@cache
def sources_stamp() -> bytes:
    """Digest of all files that compiled functions take functions and constants from."""
    digest = hashlib.sha256()
    for folder in ("codecs", "kernels"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.digest()
