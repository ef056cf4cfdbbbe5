"""A directory that prefixes fall into, and that the next process goes on with.

`frames` is the arena. What lies in it is told by `index.safetensors`, which is written when the
memory is given up and removed while it is in use: a process that is killed leaves a directory
without one, which begins empty.
"""

from __future__ import annotations

import fcntl
import os
import warnings
import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..errors import CacheShrinkWarning, OutputError
from ..pool.budget import frames_within
from ..pool.disk_frames import DiskFrames
from ..pool.prefixes.tensors import fill_places, places_of
from ..pool.prefixes.tier import DISK, Tier
from ..pool.prefixes.tree import PrefixTree
from ..pool.store import SequenceStore
from ..writing import space_fault
from .prefix_files import description_of, read_tensors, write_tensors

FRAMES, INDEX, LOCK = "frames", "index.safetensors", "lock"


def disk_tier(
    directory: str | Path, num_bytes: int, store: SequenceStore, model: PreTrainedModel, policy: str
) -> Tier:
    """A tier in a directory, with what an earlier process of the same model left there.

    Args:
        num_bytes: most that its frames take.

    Raises:
        CacheFullError: `num_bytes` are too few for a frame, or for what is there.
        CheckpointError: what is there is damaged, or of another model, layout or code of states.
        OutputError: the directory cannot be written, is full, or in use.
    """
    path, layout = Path(directory), store.layout
    num_frames = frames_within(num_bytes, layout.frame_bytes)
    about = description_of(store, model)
    with ExitStack() as opened:
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _locked(path / LOCK)
            opened.callback(os.close, lock)
            tensors = _index_of(path, about, store)
            _check_room(path, num_bytes)
            if tensors is None and (path / FRAMES).is_file():
                warnings.warn(
                    f"{path} was left without {INDEX} by a process that was killed; it begins "
                    "empty",
                    CacheShrinkWarning,
                    stacklevel=3,
                )
            pool = DiskFrames(path / FRAMES, num_frames, layout.frame_bytes)
            tier = Tier(DISK, layout, pool, policy, store.prefixes.codes)
            if tensors is not None:
                fill_places(tier.tree, tensors)
                pool.sums[tensors["places"].numpy()] = tensors["sums"].numpy().astype(np.uint32)
            (path / INDEX).unlink(missing_ok=True)
            os.truncate(path / FRAMES, pool.nbytes)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"prefixes cannot be kept in {path} ({error}); give a directory that can be "
                f"written, with {num_bytes} bytes of room"
            ) from error
        opened.pop_all()
    weakref.finalize(tier, _leave, tier.tree, pool, path / INDEX, about, lock)
    return tier


def _index_of(
    path: Path, about: dict[str, str], store: SequenceStore
) -> dict[str, torch.Tensor] | None:
    index = path / INDEX
    return read_tensors(index, about, store.prefixes) if index.is_file() else None


def _check_room(path: Path, num_bytes: int) -> None:
    """Refuse a directory whose disk has no room for frames of so many bytes.

    Raises:
        OutputError: it has not.
    """
    frames = path / FRAMES
    taken = frames.stat().st_size if frames.is_file() else 0
    fault = space_fault(path, max(0, num_bytes - taken))
    if fault is not None:
        raise OutputError(fault)


def _leave(
    tree: PrefixTree, pool: DiskFrames, index: Path, about: dict[str, str], lock: int
) -> None:
    """Write what is where, and let others have the directory."""
    try:
        pool.flush()
        tensors = places_of(tree)
        sums = pool.sums[tensors["places"].numpy()].astype(np.int64)
        write_tensors(index, {**tensors, "sums": torch.from_numpy(sums)}, about)
    finally:
        os.close(lock)


def _locked(path: Path) -> int:
    """The descriptor of a file that no other process has locked."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise OutputError(
            f"{path.parent} is in use by another cache of prefixes; give each its own directory"
        ) from error
    return lock
