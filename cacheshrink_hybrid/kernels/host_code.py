"""Functions compiled by numba for the CPU that they run on.

What was compiled is kept on disk, so that the next process starts at once: in `__pycache__` beside
the source where that can be written to, else in numba's folder among the user's caches, or below
`NUMBA_CACHE_DIR` where that is set; where nothing can be written, every process compiles anew.

Sums may be taken in another order and fused with products; NaN and infinity stay what they are. No
function starts threads, and all let go of the interpreter's lock.
"""

from __future__ import annotations

import glob
import hashlib
import os
import pickle
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.serialize import dumps

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
    of_numba = made._cache
    of_numba._cache_file = KeptFiles(Path(of_numba.cache_path), of_numba._impl.filename_base)
    return made


class KeptFiles:
    """What was compiled of one function: a file for each signature and CPU, whose name says of
    which sources.

    numba keeps an index beside the files that it names. It asks the function's own file alone
    whether they are still right, and other processes may write between its two reads.

    Args:
        folder: of the files; made by numba before anything is written.
        name: that their names begin with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def load(self, key: tuple) -> Any:
        """What was kept under a key of numba; None for nothing."""
        try:
            kept_key, data = pickle.loads(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        return data if kept_key == key else None

    def save(self, key: tuple, data: Any) -> None:
        """Keep it, and nothing of other sources."""
        path = self._path(key)
        written = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            written.write_bytes(dumps((key, data)))
            os.replace(written, path)
        finally:
            written.unlink(missing_ok=True)
        for other in self._all():
            if not other.name.startswith(self._begin()):
                other.unlink(missing_ok=True)

    def flush(self) -> None:
        """Nothing is kept any more."""
        for path in self._all():
            path.unlink(missing_ok=True)

    def _begin(self) -> str:
        return f"{self.name}.{sources_stamp()}."

    def _path(self, key: tuple) -> Path:
        of_key = hashlib.sha256(repr((numba.__version__, key)).encode()).hexdigest()
        return self.folder / f"{self._begin()}{of_key[:16]}.nbc"

    def _all(self) -> list[Path]:
        found = self.folder.glob(f"{glob.escape(self.name)}.*")
        return [path for path in found if path.suffix in (".nbc", ".nbi")]


@cache
def sources_stamp() -> str:
    """Digest of all files that compiled functions take functions and constants from."""
    digest = hashlib.sha256()
    for folder in ("codecs", "kernels"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
