"""`latent_decode` and `latent_prefill` compiled for CPUs."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...workers import in_parallel, num_shares
from ..cpu.reading import LEAST_SLOTS, read_rows
from ..cpu.row_view import (
    NO_ANGLES,
    NO_BIAS,
    NO_MEAN,
    NO_NORM,
    NO_WEIGHT,
    floats,
    read_form,
)
from ..cpu.tables import row_tables
from ..paged_rows import PagedRows
from .read import LatentRead


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
    B, T, H, _ = query.shape
    key_up, form = read.key_up, read_form(read, rows)
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
        weight, mean = floats(read.block_up.weight), floats(read.block_up.mean.transpose(1, 2))
        in_blocks = mean, floats(read.block_up.cos), floats(read.block_up.sin)
    offsets = query.new_zeros(B, T, H) if offset is None else offset
    if num_splits is None:
        num_splits = num_shares(int(sequences[0].max(initial=0)), LEAST_SLOTS)
    arguments = (
        floats(query),
        floats(offsets),
        rows.arena.numpy(),
        frame_table.numpy(),
        sequences,
        (form.runs, form.shares),
        row_tables(),
        weight,
        finish,
        in_blocks,
        form.reading,
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
