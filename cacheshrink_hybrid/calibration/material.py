"""What a calibration is to read, before any tokenizer has seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..chat_template import Conversation
from ..demo.corpus import PYTHON_DOCS
from .chats import load_chats
from .text import evenly_spread, load_texts


@dataclass(frozen=True, slots=True)
class CalibrationMaterial:
    """Texts and conversations, and what they are called."""

    texts: Sequence[str] = ()
    chats: Sequence[Conversation] = ()
    name: str = ""


def load_material(
    texts: Sequence[str] | None,
    dataset: str | Path | None,
    subset: str | None,
    chats: Sequence[Conversation] | str | Path | None,
    num_samples: int,
) -> CalibrationMaterial:
    """As many documents as `num_samples`, evenly spread over what there is. Of both kinds, each
    gives half, and more where the other has fewer.

    Args:
        texts, dataset, subset: see `load_texts`. Without texts and a data set it is the
            documentation of Python's library, or the chats alone.
        chats: see `load_chats`.

    Raises:
        CalibrationError: nothing usable.
    """
    found = [] if chats is None else load_chats(chats)
    names = []
    if found:
        names.append("chats of the caller" if not isinstance(chats, (str, Path)) else str(chats))
    loaded: list[str] = []
    if texts is not None or dataset is not None or subset is not None or not found:
        dataset = PYTHON_DOCS if dataset is None else dataset
        share = max(num_samples - len(found), num_samples // 2)
        loaded = load_texts(texts, dataset, subset, num_samples=share)
        names.append("texts of the caller" if texts is not None else str(dataset))
    found = evenly_spread(found, num_samples - len(loaded))
    return CalibrationMaterial(loaded, found, " and ".join(names))
