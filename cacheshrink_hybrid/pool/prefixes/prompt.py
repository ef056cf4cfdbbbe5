"""Sequences on their way through a prompt."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol


class Prompted(Protocol):
    """A sequence on its way through a prompt.

    Attributes:
        seq_id: its name in the store.
        tokens: of the prompt, and those that were generated; a sequence or an array.
        num_computed: tokens whose rows and states are in the pool.
        checkpoints: positions at which the sequence is to be kept, and why, in ascending order;
            None before it was looked up.
        num_kept: tokens up to the last position at which it was.
    """

    tokens: Any
    num_computed: int
    checkpoints: dict[int, str] | None
    num_kept: int

    @property
    def seq_id(self) -> Hashable: ...


@dataclass(slots=True, eq=False)
class Prompt:
    """One that is nothing else."""

    seq_id: Hashable
    tokens: Any
    num_computed: int = 0
    checkpoints: dict[int, str] | None = None
    num_kept: int = 0
