"""`latent_decode` and `latent_prefill` compiled for CPUs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...workers import in_parallel
from ..cpu.finish import floats
from ..cpu.reading import read_rows
from ..cpu.row_view import reading_view, row_tables, runs_view, shares_view
from ..paged_rows import PagedRows
from .read import LatentRead

LEAST_SLOTS = 256
"""Slots of a share, at the least, that another thread is woken for."""
NO_WEIGHT, NO_BIAS = np.empty((0, 0, 0), np.float32), np.empty((0, 0), np.float32)
NO_NORM, NO_ANGLES = np.empty(0, np.float32), np.empty((1, 0), np.float32)
NO_MEAN = NO_WEIGHT, NO_ANGLES, NO_ANGLES


def latent_decode_cpu(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    offset: Tensor | None,
    query_lens: Tensor | None,
    first_slots: Tensor | None,
    num_splits: int | None,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode` and `latent_prefill`; float32 arithmetic."""
    sequences = np.zeros((4, len(query)), np.int32)
    sequences[0] = context_lens.numpy()
    sequences[1] = query.shape[1] if query_lens is None else query_lens.numpy()
    if first_slots is not None:
        sequences[2] = first_slots.numpy()
    return read_coded(query, rows, frame_table, sequences, read, offset, num_splits)


def read_coded(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    sequences: NDArray,
    read: LatentRead,
    offset: Tensor | None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`latent_decode` with `sequences` as `read_block` takes them, (4, B) int32."""
    B, T, H, _ = query.shape
    key_up, layout = read.key_up, rows.layout
    weight, finish = NO_WEIGHT, (NO_BIAS, NO_NORM, NO_ANGLES, NO_ANGLES)
    if key_up is not None:
        weight = floats(key_up.weight)
        finish = (
            floats(key_up.bias),
            NO_NORM if key_up.norm_weight is None else floats(key_up.norm_weight),
            NO_ANGLES if key_up.cos is None else floats(key_up.cos),
            NO_ANGLES if key_up.sin is None else floats(key_up.sin),
        )
    in_blocks = NO_MEAN
    if read.block_up is not None:
        weight, mean = floats(read.block_up.weight), floats(read.block_up.mean)
        in_blocks = mean, floats(read.block_up.cos), floats(read.block_up.sin)
    offsets = query.new_zeros(B, T, H) if offset is None else offset
    if num_splits is None:
        longest = int(sequences[0].max(initial=0))
        num_splits = max(1, min(torch.get_num_threads(), longest // LEAST_SLOTS))
    arguments = (
        floats(query),
        floats(offsets),
        rows.arena.numpy(),
        frame_table.numpy(),
        sequences,
        (runs_view(layout), shares_view(layout, read.key_rank, read.key_heads)),
        row_tables(),
        weight,
        finish,
        in_blocks,
        reading_view(read, rows),
    )
    output = torch.zeros(num_splits, B, T, H, read.value_rank)
    sums = torch.full((num_splits, B, T, H), -torch.inf)
    in_parallel(
        [
            partial(
                read_rows,
                *arguments,
                np.array((split, num_splits)),
                output[split].numpy(),
                sums[split].numpy(),
            )
            for split in range(num_splits)
        ]
    )
    if num_splits == 1:
        return output[0].to(query.dtype), sums[0]
    lse = torch.logsumexp(sums, dim=0)
    share = torch.exp(sums - torch.where(lse == -torch.inf, 0.0, lse))
    return (output * share[..., None]).sum(dim=0).to(query.dtype), lse
