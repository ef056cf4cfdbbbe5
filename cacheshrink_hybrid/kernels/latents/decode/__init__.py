"""Attention of a few new tokens over latents in the pool."""

from __future__ import annotations

from torch import Tensor

from ....errors import ConfigError
from ...backend import Backend
from ..paged_rows import PagedRows
from .attend import attend
from .read import BlockUp, KeyUp, LatentRead

__all__ = ["BlockUp", "KeyUp", "LatentRead", "latent_decode"]


def latent_decode(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    offset: Tensor | None = None,
    first_slots: Tensor | None = None,
    num_splits: int | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Attend from the last T tokens of each sequence to all slots before and including them.

        score_s = scale * (query . key_s + offset),   lse = log sum_s exp(score_s)
        output = sum_s exp(score_s - lse) values_s    over the visible s

    where values_s are the last `read.value_rank` channels of latent s, and key_s its first
    `read.key_rank` channels, or what `read.key_up` or `read.block_up` make of them. Latents are
    read from their bytes; nothing of their size is written. The reference multiplies in float32;
    the kernel in float32 for float32 queries, else with 16-bit operands and float32 sums.

    Args:
        query: (B, T, H, key_rank) in latent space; (B, T, H, D), rotated, if keys are rebuilt or
            stored rotated.
        rows: the layer's rows, the T new ones included.
        frame_table: frames of each sequence, (B, max_frames), int32, -1 where there is none; slots
            without a frame are not seen.
        context_lens: slots of each sequence, (B,), int32. Sequences of 0 slots give zeros.
        read: ranks, scale, window, and the rest.
        offset: added to the scores of a query before scaling, (B, T, H); what the mean of the keys
            gives.
        first_slots: slots before these are not seen, (B,), int32, as where a batch is padded on the
            left; None for all.
        num_splits: shares into which a sequence is cut, to be read at the same time; None for as
            many as fill the device. The reference has no use for it.

    Returns:
        output (B, T, H, value_rank) in query's type, and lse (B, T, H), float32; 0 and -inf where
        nothing is seen. With the latter, what the queries read elsewhere, and logits without a
        value, can take part in the softmax. A lost token gives NaN to those who see it; where
        channels are stored as floats, the kernel may pass it on to other new tokens of the same
        sequence.

    Raises:
        ConfigError: shapes or types that do not fit.
        KernelUnavailableError: see `backend`.

    Reference: absorbed attention of DeepSeek-V2 (arXiv 2405.04434); split sequences as in
    FlashDecoding.
    """
    if num_splits is not None and not 1 <= num_splits <= 64:
        raise ConfigError(f"num_splits={num_splits} must be in [1, 64], or None to choose")
    return attend(
        query,
        rows,
        frame_table,
        context_lens,
        read=read,
        offset=offset,
        query_lens=None,
        first_slots=first_slots,
        num_splits=num_splits,
        backend=backend,
    )
