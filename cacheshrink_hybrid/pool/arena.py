"""Rows and states in the arena as tensors: the plain reference of how the bytes are laid out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .frame_pool import FramePool
from .lifetime import LifetimeClass
from .state_map import StateMap


def row_view(
    pool: FramePool, lifetime: LifetimeClass, place: int, dtype: torch.dtype = torch.uint8
) -> Tensor:
    """All rows of one layer, (1 + num_frames, T, row elements), a view of the arena.

    Args:
        place: of the layer within its class.
        dtype: type of the elements that the rows are made of.
    """
    size = dtype.itemsize
    row, offset = lifetime.row_bytes[place], lifetime.offsets[place]
    num_frames = 1 + pool.num_frames
    return pool.arena.view(dtype).as_strided(
        (num_frames, lifetime.tokens_per_frame, row // size),
        (pool.frame_bytes // size, row // size, 1),
        offset // size,
    )


def read_rows(view: Tensor, frames: Tensor, begin: int, end: int) -> Tensor:
    """Rows of the tokens [begin, end), (end - begin, row elements).

    Args:
        view: of one layer, from `row_view`.
        frames: frame numbers of the sequence, (num_frames,) int64.
    """
    tokens = torch.arange(begin, end, device=view.device)
    T = view.shape[1]
    return view[frames[tokens // T], tokens % T]


def write_rows(view: Tensor, frames: Tensor, begin: int, rows: Tensor) -> None:
    """Store rows (k, row elements) as those of the tokens [begin, begin + k)."""
    tokens = torch.arange(begin, begin + len(rows), device=view.device)
    T = view.shape[1]
    view[frames[tokens // T], tokens % T] = rows


def read_first(view: Tensor, frames: Tensor, count: int) -> Tensor:
    """Rows (B, count, row elements) of the first tokens of several sequences; anything where there
    are none.

    Args:
        frames: (B, frames of the longest), -1 where there are none.
    """
    if not frames.shape[1]:
        return view.new_zeros(len(frames), count, view.shape[2])
    tokens = torch.arange(count, device=view.device)
    T = view.shape[1]
    entries = (tokens // T).clamp_max(frames.shape[1] - 1)
    return view[frames[:, entries].clamp_min(0), tokens % T]


def write_first(
    view: Tensor, frames: Tensor, before: Sequence[int], rows: Tensor, count: int
) -> None:
    """Store those of the rows (B, T, row elements) that are of a sequence's first `count` tokens.

    Args:
        before: tokens of each sequence before these; less than none if the first of them are
            padding.
    """
    B, T, _ = rows.shape
    new = [
        (b, token, token - before[b])
        for b in range(B)
        for token in range(max(0, before[b]), min(count, before[b] + T))
    ]
    if new:
        batch, tokens, places = torch.tensor(new, device=view.device).T
        at = frames[batch, tokens // view.shape[1]]
        view[at, tokens % view.shape[1]] = rows[batch, places].to(view.dtype)


def read_state(pool: FramePool, state: StateMap, frames: Tensor, number: int) -> Tensor:
    """One state tensor of several sequences as bytes, (B, num_rows, row_bytes).

    Args:
        frames: frame numbers of the sequences' states, (B, state.num_frames) int64.
        number: of the tensor in `state.rows`.
    """
    rows = state.rows[number]
    out = pool.arena.new_empty((len(frames), rows.num_bytes))
    for piece in state.slices[number]:
        start = piece.first_row * rows.row_bytes
        num_bytes = piece.num_rows * rows.row_bytes
        source = pool.frames[:, piece.offset : piece.offset + num_bytes]
        out[:, start : start + num_bytes] = source[frames[:, piece.frame]]
    return out.view(len(frames), rows.num_rows, rows.row_bytes)


def write_state(
    pool: FramePool, state: StateMap, frames: Tensor, number: int, values: Tensor
) -> None:
    """The inverse of `read_state`; values are (B, num_rows, row_bytes) bytes."""
    rows = state.rows[number]
    flat = values.reshape(len(frames), rows.num_bytes)
    for piece in state.slices[number]:
        start = piece.first_row * rows.row_bytes
        num_bytes = piece.num_rows * rows.row_bytes
        target = pool.frames[:, piece.offset : piece.offset + num_bytes]
        target[frames[:, piece.frame]] = flat[:, start : start + num_bytes]
