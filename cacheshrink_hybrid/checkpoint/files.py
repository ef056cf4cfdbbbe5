"""The files of a saved model: which are ours, how they replace earlier ones, and their digests.

A save writes a draft inside its target, and moves the draft's files into place when all of them
are complete. What was there before comes back if that fails; files that no save of ours wrote are
never touched, nor are they replaced by others of the same name.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None  # type: ignore[assignment]

MODEL_TYPE = "cacheshrink_hybrid"
"""What config.json of a converted model names as its `model_type`."""
CONFIG_NAME = "config.json"
PLAN_NAME = "cacheshrink_plan.json"
"""The file that makes a directory a converted model."""
CARD_NAME = "README.md"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DRAFT_PREFIX = ".cacheshrink-save-"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER = re.compile(r"adapter_(config\.json|model.*\.safetensors(\.index\.json)?)")
_BESIDE = ("generation_config.json", "tokenizer.json", "tokenizer_config.json")
"""What a save of a model and its tokenizer writes beside the model."""
_READ_BYTES = 2**22


def is_weights_name(name: str) -> bool:
    """Whether a save of ours, or of transformers, gives weights this name."""
    return _WEIGHTS.fullmatch(name) is not None


def model_type_of(config: Path) -> object:
    """The `model_type` of a config.json; None if there is none, or it cannot be read."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values.get("model_type") if isinstance(values, dict) else None


def holds_converted_model(directory: Path) -> bool:
    """Whether the model in a directory is one that a save of ours wrote.

    A plan alone does not say so: another model may have been saved over a converted one, whose plan
    then stays. The config comes last when files are moved into place, so it may not be there yet.
    """
    config = directory / CONFIG_NAME
    return (directory / PLAN_NAME).is_file() and (
        not config.exists() or model_type_of(config) == MODEL_TYPE
    )


def foreign_model_files(directory: Path) -> list[str]:
    """Names of a model that is not a converted one, which a save would replace."""
    if not directory.is_dir() or holds_converted_model(directory):
        return []
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.name == CONFIG_NAME or is_weights_name(path.name)
    )


def check_target(target: Path) -> None:
    """Raise `CheckpointError` if a save to `target` would replace what is not ours."""
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; give a directory to save to")
    foreign = foreign_model_files(target)
    if foreign:
        raise CheckpointError(
            f"{target} holds another model ({', '.join(foreign[:3])}), whose files a save would "
            "replace; give another directory, or remove them first"
        )


def files_in_the_way(directory: Path) -> list[str]:
    """Names in a directory without a converted model that saving one there may replace: what is
    told before there is a model to save."""
    if not directory.is_dir() or holds_converted_model(directory):
        return []
    beside = [name for name in _BESIDE if os.path.lexists(directory / name)]
    return [*foreign_model_files(directory), *beside]


def _check_replaced(draft: Path, names: Iterable[Path], target: Path) -> None:
    """Raise `CheckpointError` if the draft's files would replace others than those of a converted
    model, or of adapters, by something else."""
    if holds_converted_model(target):
        return
    others = [
        name
        for name in names
        if os.path.lexists(target / name)
        and not _ADAPTER.fullmatch(name.name)
        and not ((target / name).is_file() and filecmp.cmp(draft / name, target / name, False))
    ]
    if others:
        raise CheckpointError(
            f"{target} holds files of something else ({shown(others)}), which a save would "
            "replace; give another directory, or remove them first"
        )


@contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """A directory whose files replace those of the same names in `target` on leaving.

    If the draft has weights, those of an earlier save that it does not have are removed. After an
    error `target` is as it was, and does not exist if it did not before.

    Raises:
        CheckpointError: if `target` cannot be written to, or has too little room.
    """
    missing = [path for path in (target, *target.parents) if not path.exists()]
    work = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=DRAFT_PREFIX, dir=target))
        draft, replaced = work / "new", work / "old"
        draft.mkdir()
        yield draft
        with _locked(target):
            _exchange(draft, target, replaced)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the model could not be saved to {target} ({error}); what was there before is "
            "unchanged; free some space, or give another directory"
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        for path in missing:  # those that nothing came to lie in
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time move files into a directory, so that the last save wins whole."""
    handle = os.open(directory, os.O_RDONLY) if fcntl is not None else None
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _exchange(draft: Path, target: Path, replaced: Path) -> None:
    """Move the draft's files into place; put earlier ones back if that fails.

    The config comes last: it has the digests of the weights, so a mixture that a crash leaves
    behind is told when it is loaded.
    """
    new = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
    new.sort(key=lambda path: (path.name == CONFIG_NAME, path))
    _check_replaced(draft, new, target)
    old = [Path(path.name) for path in target.iterdir() if is_weights_name(path.name)]
    whole = any(is_weights_name(path.name) for path in new)  # adapters go beside their model
    stale = [path for path in old if whole and path not in new]
    moved: list[Path] = []
    try:
        for path in [*new, *stale]:
            moved.append(path)
            _set_aside(target / path, replaced / path)
            if path in stale:
                (target / path).unlink(missing_ok=True)
            else:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / path, target / path)
    except BaseException:
        for path in reversed(moved):
            if os.path.lexists(replaced / path):
                os.replace(replaced / path, target / path)
            elif path not in stale:
                (target / path).unlink(missing_ok=True)
        raise


def _set_aside(path: Path, backup: Path) -> None:
    """Keep a file under a second name, which takes no room and leaves it readable under its own."""
    if not os.path.lexists(path):
        return
    backup.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, backup, follow_symlinks=False)
    except OSError:  # a file system without hard links
        os.rename(path, backup)


def shown(names: Iterable[object]) -> str:
    """Up to five names for an error message."""
    found = sorted(str(name) for name in names)
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")


def sha256_of(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by name, as the Hub and `sha256sum` give it; large files side by side."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda name: _sha256(directory / name), names)
        return dict(zip(names, digests, strict=True))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
