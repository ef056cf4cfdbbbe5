"""Long chunks over history in the pool: keys and values of one block of slots at a time.

A block of rows is decoded, expanded and attended to by the attention of torch; the blocks' results
are merged by their log-sum-exp. Expanding costs 2 J D (Rk + Rv) operations per slot once per chunk,
and then 4 H D per token; meeting latents where they lie costs 2 H (K + Rv) per token, with queries
of K channels, or rebuilds keys for every 64 rows of queries. Beyond some tens of tokens expanding
does less, and its scratch is one block, whatever the length of the history. The choice rests on
this count of operations; it has not been measured on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.latents.decode import LatentRead
from ...kernels.latents.paged_rows import PagedRows
from .head import LatentHead, joined

BLOCK_SLOTS = 2048
ROWS_PER_PROGRAM = 64
FLASH_DTYPES = (torch.float16, torch.bfloat16)


def latent_operations(head: LatentHead, read: LatentRead, num_new: int) -> int:
    """Operations per slot of history by `latent_prefill`, for `num_new` queries of each head."""
    H, J, D = head.num_attention_heads, head.num_key_value_heads, head.head_dim
    rows = num_new * H
    if read.block_up is not None:
        absorbed = D * read.key_rank // read.block_up.block_slots
        return 2 * rows * (read.key_rank + D + absorbed + read.value_rank)
    if read.key_up is None:
        return 2 * rows * (read.query_width + read.value_rank)
    rank = read.key_up.weight.shape[2]
    programs = J * -(-rows // (J * ROWS_PER_PROGRAM))
    return 2 * programs * rank * D + 2 * rows * (D + read.value_rank)


def expanded_operations(head: LatentHead, read: LatentRead, num_new: int) -> int:
    """The same for keys and values that are expanded once."""
    H, J, D = head.num_attention_heads, head.num_key_value_heads, head.head_dim
    rank = read.own_rank if read.key_up is None else read.key_up.weight.shape[2]
    return 2 * J * D * (rank + read.value_rank) + 4 * num_new * H * D


def expanding_pays(head: LatentHead, read: LatentRead, num_new: int) -> bool:
    """Whether fewer operations are done by expanding, and torch's attention can do them: it knows
    neither windows nor a softcap."""
    if read.window is not None or read.softcap is not None:
        return False
    latent = latent_operations(head, read, num_new)
    return expanded_operations(head, read, num_new) < latent


def expanded_prefill(
    head: LatentHead,
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    num_slots: int,
    *,
    block_slots: int = BLOCK_SLOTS,
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D), the last T of `num_slots` slots
    of every sequence, whose rows are in the pool already.

    Args:
        block_slots: slots that are expanded at a time.
    """
    B, H, T, D = query.shape
    begin = num_slots - T
    mixed = torch.zeros(B, H, T, D, dtype=torch.float32, device=query.device)
    total = torch.full((B, H, T), -torch.inf, device=query.device)
    if head.sinks is not None:
        total = head.sinks.float()[None, :, None].expand(B, H, T)
    blocks = [(at, min(at + block_slots, begin)) for at in range(0, begin, block_slots)]
    for first, last in [*blocks, (begin, num_slots)]:
        latent = _latents(head, rows, frame_table, first, last, query.dtype)
        angles = None
        if head.rotary is not None:
            cos, sin = head.rotary.angles(num_slots, query)
            angles = cos[:, first:last], sin[:, first:last]
        key, value = head.keys(latent, angles, first), head.values(latent)
        output, weight = attention_with_sums(head, query, key, value, causal=first == begin)
        merged = torch.logaddexp(total, weight)
        mixed = mixed * torch.exp(total - merged)[..., None]
        mixed = mixed + output.float() * torch.exp(weight - merged)[..., None]
        total = merged
    return joined(mixed.to(query.dtype), H)


def attention_with_sums(
    head: LatentHead, query: Tensor, key: Tensor, value: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention of (B, H, T, D) over keys and values (B, J, S, D), and the log-sum-exp of the
    scores, (B, H, T) float32; without sinks and window.

    Args:
        causal: query t sees the keys up to t; then S = T. Otherwise every query sees all.
    """
    group = query.shape[1] // key.shape[1]
    flash = query.shape[-1] % 8 == 0 and head.softcap is None
    if query.device.type == "cuda" and query.dtype in FLASH_DTYPES and flash:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
        attend = torch.ops.aten._scaled_dot_product_flash_attention
        output, sums = attend(query, key, value, 0.0, causal, False, scale=head.scale)[:2]
        return output, sums[..., : query.shape[2]].float()
    scores = head.scores(head.products(query.float(), key.float()))
    if causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~past, -torch.inf)
    sums = torch.logsumexp(scores, dim=-1)
    weights, value = torch.exp(scores - sums[..., None]), value.float()
    return torch.matmul(weights, value.repeat_interleave(group, dim=1)), sums


def _latents(
    head: LatentHead,
    rows: PagedRows,
    frame_table: Tensor,
    first: int,
    last: int,
    dtype: torch.dtype,
) -> Tensor:
    """Latents (B, last - first, R) of the slots [first, last) of every sequence."""
    T, row_bytes = rows.frame_tokens, rows.layout.row_bytes
    first_frame = first // T
    frames = frame_table[:, first_frame : -(-last // T)].long()
    in_frames = rows.arena.view(-1, rows.frame_bytes)
    in_frames = in_frames[:, rows.layer_offset : rows.layer_offset + T * row_bytes]
    stored = in_frames[frames].view(len(frames), -1, row_bytes)
    stored = stored[:, first - first_frame * T : last - first_frame * T]
    if head.codec is None:
        stored = stored.contiguous().view(dtype)
    return head.decoded(stored, dtype)
