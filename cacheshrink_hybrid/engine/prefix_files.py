"""Prefixes of a model in a directory, so that a long system prompt is shipped as it was computed.

A file says what it is of: of which layout of frames, and of which weights under which plan, by
SHA-256. It is read for these alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import CheckpointError
from ..pool.prefixes.tensor_faults import tensor_fault
from ..pool.prefixes.tensors import fill, tensors_of
from ..pool.prefixes.tree import PrefixTree
from ..pool.store import SequenceStore
from ..writing import replaced
from .model_stamp import model_digest

FILE_NAME = "prefixes.safetensors"
FORMAT = "cacheshrink_hybrid prefixes 1"
LAID_OUT = "lays its cache out, or keeps states, otherwise"


def save_prefixes(directory: str | Path, store: SequenceStore, model: PreTrainedModel) -> None:
    """Write what a store keeps of prompts to `model` into a directory, in the place of an earlier
    file of this name.

    Raises:
        OutputError: it cannot be written. What was there before still is.
    """
    write_tensors(
        Path(directory) / FILE_NAME, tensors_of(store.prefixes), description_of(store, model)
    )


def load_prefixes(directory: str | Path, store: SequenceStore, model: PreTrainedModel) -> None:
    """Let a store, which keeps no prefixes yet, keep those that were saved of the same model.

    Raises:
        CheckpointError: there are none, they are damaged, or of another model or layout.
        CacheFullError: they do not fit. Nothing was changed.
    """
    path = Path(directory) / FILE_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{directory} has no {FILE_NAME}; give a directory that prefixes were saved to"
        )
    fill(store.prefixes, read_tensors(path, description_of(store, model), store.prefixes))


def description_of(store: SequenceStore, model: PreTrainedModel) -> dict[str, str]:
    """What files of prefixes say of the model that they are of."""
    layout = store.prefixes.digest
    return {"format": FORMAT, "layout": layout, "model": model_digest(model)}


def write_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors with what is said of them, and their digest.

    Raises:
        OutputError: it cannot be written. What was there before still is.
    """
    with replaced(path) as draft:
        save_file(tensors, draft, metadata={**about, "content": _content_digest(tensors)})


def read_tensors(path: Path, due: dict[str, str], tree: PrefixTree) -> dict[str, Tensor]:
    """The tensors of a file that `write_tensors` wrote.

    Args:
        due: what it has to say of them.
        tree: what they are to be filled into.

    Raises:
        CheckpointError: it is damaged, says something else, or holds what is no tree.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise CheckpointError(
                    f"{path} has the format {about.get('format')!r}, and {FORMAT!r} is read; save "
                    "the prefixes again with this version of the package"
                )
            _check(path, "layout", about, due["layout"], LAID_OUT)
            _check(path, "model", about, due["model"], "has other weights, or another plan")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error
    _check(path, "content", about, _content_digest(tensors), "was saved with other content")
    fault = tensor_fault(tree, tensors)
    if fault is not None:
        raise CheckpointError(f"{path} holds no prefixes: {fault}; save them again")
    return tensors


def _check(path: Path, what: str, about: dict[str, str], due: str, fault: str) -> None:
    """Refuse a file whose digest of `what` is another."""
    if about.get(what) != due:
        subject = "it" if what == "content" else "this model"
        raise CheckpointError(
            f"{path} is of {what} {str(about.get(what))[:16]}, and not {due[:16]}: {subject} "
            f"{fault}; save the prefixes again with this model, or load them with theirs"
        )


def _content_digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():  # of any type, also of those that NumPy lacks
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
