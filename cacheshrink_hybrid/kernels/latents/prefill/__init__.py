"""Attention of many new tokens over latents in the pool.

The kernel and the reference are those of `latent_decode`: a row of queries is a pair of token and
head, and a program takes 64 of them. Sequences are not split, because queries fill the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import ConfigError
from ...backend import Backend
from ..decode.attend import attend
from ..decode.read import LatentRead
from ..paged_rows import PagedRows

__all__ = ["latent_prefill"]


def latent_prefill(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    query_lens: Tensor,
    *,
    read: LatentRead,
    offset: Tensor | None = None,
    first_slots: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend from the last `query_lens` tokens of each sequence to the slots before and including
    each: chunked prefill, with the history and the chunk read from the pool.

    As `latent_decode`, but sequences bring different numbers of queries.

    Args:
        query: as of `latent_decode`.
            Sequence b uses the first query_lens[b] tokens; the others are padding.
        rows, frame_table, context_lens, read, offset, first_slots: as in `latent_decode`;
            the rows of the chunk are in the pool already, and counted in context_lens.
        query_lens: tokens of the chunk, (B,), int32, at most T and at most context_lens.

    Returns:
        output (B, T, H, value_rank) in query's type, and lse (B, T, H), float32; both are
        undefined for padding.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.
    """
    if query_lens.shape != context_lens.shape or query_lens.dtype != torch.int32:
        raise ConfigError(
            f"query_lens is {query_lens.dtype} {tuple(query_lens.shape)}; due is int32 "
            f"({query.shape[0]},)"
        )
    return attend(
        query,
        rows,
        frame_table,
        context_lens,
        read=read,
        offset=offset,
        query_lens=query_lens,
        first_slots=first_slots,
        num_splits=1,
        backend=backend,
    )
