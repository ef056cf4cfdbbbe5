"""Files of results: whether they can be written, and written whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

SPARE_BYTES = 2**20
"""Left free beside what is written."""


def write_fault(directory: Path) -> str | None:
    """Why no file can be written into `directory`, which need not exist yet; None if one can."""
    nearest = _nearest(directory)
    if not nearest.is_dir():
        return f"{nearest} is a file; give a directory"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return f"{directory} cannot be written to ({error.strerror}); give another directory"


def space_fault(directory: Path, needed_bytes: int) -> str | None:
    """Why `needed_bytes` find no room in `directory`, which need not exist yet; None if they do."""
    nearest = _nearest(directory)
    if not needed_bytes or not nearest.is_dir():
        return None
    free, needed = shutil.disk_usage(nearest).free, needed_bytes + SPARE_BYTES
    if free >= needed:
        return None
    has = math.floor(10 * free / 2**20) / 10
    takes = math.ceil(10 * needed / 2**20) / 10
    return (
        f"{directory} has {has:,.1f} MiB free, and about {takes:,.1f} MiB are needed; free some "
        "space, or give another directory"
    )


def _nearest(directory: Path) -> Path:
    """The directory, or what there is of the way to it."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file to write in the place of `path`, which takes its name when it is whole; its folder is
    made if need be. Links and devices are written through.

    Raises:
        OutputError: it cannot be written. What was at `path` is still there then.
    """
    through = path.is_symlink() or (path.exists() and not path.is_file())
    draft = path if through else path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        if not through:
            os.replace(draft, path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); free some space, or give "
            "another path"
        ) from error
    finally:
        if not through and draft.exists():
            draft.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with replaced(path) as draft:
        draft.write_text(text, encoding="utf-8")
