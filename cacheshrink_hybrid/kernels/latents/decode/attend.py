"""What `latent_decode` and `latent_prefill` share: checks, and what runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from ...backend import Backend, implementation
from ..paged_rows import PagedRows, check_frame_table
from .read import LatentRead


def attend(
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
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode`, and `latent_prefill` for `query_lens`, which are None for all tokens."""
    read.check(query, offset, rows)
    check_frame_table(frame_table, context_lens, query.shape[0], first_slots)
    decode: Callable[..., tuple[Tensor, Tensor]]
    tensors = (query, frame_table, context_lens, offset, query_lens, first_slots)
    chosen = implementation(backend, rows.arena, *tensors)
    if chosen == "triton" and read.in_one_launch(rows.layout.num_channels, query.dtype.itemsize):
        from .kernel import latent_decode_triton

        decode = partial(latent_decode_triton, num_splits=num_splits)
    elif chosen == "triton":
        from .two_passes import latent_decode_in_two_passes

        decode = partial(latent_decode_in_two_passes, num_splits=num_splits)
    elif chosen == "cpu":
        from .cpu import latent_decode_cpu

        decode = partial(latent_decode_cpu, num_splits=num_splits)
    else:
        from .reference import latent_decode_reference as decode
    return decode(
        query,
        rows,
        frame_table,
        context_lens,
        read=read,
        offset=offset,
        query_lens=query_lens,
        first_slots=first_slots,
    )
