"""What sequences hold as tensors of frame numbers, for code that reads and writes the arena, and
their bytes as a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import SequenceError
from . import arena
from .frame_ledger import frame_ids
from .frame_pool import FramePool
from .layout import Layout
from .sequence import CachedSequence


def frame_table(
    sequences: Sequence[CachedSequence], class_number: int, device: torch.device
) -> Tensor:
    """Frame numbers (B, most frames), int32, -1 where unused or gone."""
    tables = [sequence.tables[class_number] for sequence in sequences]
    longest = max((len(table) for table in tables), default=0)
    numbers = np.full((len(tables), longest), -1, dtype=np.int32)
    for row, table in zip(numbers, tables, strict=True):
        row[: len(table)] = frame_ids(table.entries)
    return torch.from_numpy(numbers).to(device)


def state_tables(
    sequences: Sequence[CachedSequence], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Frames to read and to write the pending step's states, (B, state frames) int32 each."""
    read, write = [], []
    for sequence in sequences:
        if sequence.state is None:
            raise SequenceError(
                f"sequence {sequence.seq_id!r} has no state yet; reserve a step first"
            )
        read.append(frame_ids(sequence.state))
        target = sequence.state if sequence.next_state is None else sequence.next_state
        write.append(frame_ids(target))
    return (
        torch.from_numpy(np.stack(read)).to(device),
        torch.from_numpy(np.stack(write)).to(device),
    )


def content_digest(layout: Layout, pool: FramePool, sequence: CachedSequence) -> str:
    """SHA-256 of every stored row and state byte of a sequence, wherever they lie."""
    text = hashlib.sha256(f"{sequence.num_tokens}".encode())
    for table, lifetime, begin in zip(sequence.tables, layout.classes, sequence.first, strict=True):
        frames = torch.from_numpy(frame_ids(table.entries)).to(pool.device, torch.int64)
        end = lifetime.num_rows(sequence.num_tokens, sequence.origin)
        for place in range(len(lifetime.layer_ids)):
            view = arena.row_view(pool, lifetime, place)
            rows = arena.read_rows(view, frames, begin, end)
            text.update(f"{begin}".encode() + rows.cpu().numpy().tobytes())
    if sequence.state is not None:
        frames = pool.index(sequence.state)[None]
        for number in range(len(layout.state.rows)):
            state = arena.read_state(pool, layout.state, frames, number)
            text.update(state.cpu().numpy().tobytes())
    return text.hexdigest()
