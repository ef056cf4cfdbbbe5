"""`latent_decode` in plain torch, shaped like the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from ....codecs.row_layout import RowLayout
from ..paged_rows import PagedRows
from ..row_reference import gather_latents
from .read import BlockUp, KeyUp, LatentRead


def latent_decode_reference(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    offset: Tensor | None,
    query_lens: Tensor | None,
    first_slots: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode` and `latent_prefill`; float32 arithmetic."""
    B, T, _, _ = query.shape
    num_slots = int(context_lens.max()) if B else 0
    num_slots = min(num_slots, frame_table.shape[1] * rows.frame_tokens)
    latent, has_frame = gather_latents(rows, frame_table, num_slots)
    # Those who see a lost token get its NaN by its score; 0 * NaN must not reach the others.
    lost = latent.isnan().all(dim=-1)
    scores = _scores(query.float(), latent, rows.layout, read)
    if offset is not None:
        scores = scores + offset.float().transpose(1, 2)[..., None]
    scores = scores * read.scale
    if read.softcap is not None:
        scores = torch.tanh(scores / read.softcap) * read.softcap

    slot = torch.arange(num_slots, device=query.device)
    lens = torch.full_like(context_lens, T) if query_lens is None else query_lens
    position = (context_lens - lens)[:, None] + torch.arange(T, device=query.device)  # (B, T)
    seen = (slot <= position[..., None]) & has_frame[:, None]  # (B, T, S)
    if read.window is not None:
        seen = seen & (slot > position[..., None] - read.window)
    if first_slots is not None:
        seen = seen & (slot >= first_slots[:, None])[:, None]
    if query_lens is not None:
        seen = seen & (torch.arange(T, device=query.device) < lens[:, None])[..., None]
    scores = torch.where(lost[:, None, None], torch.nan, scores)
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)  # (B, H, T)
    # A query that sees nothing has probabilities of zero, not NaN.
    probabilities = torch.exp(scores - torch.where(lse == -torch.inf, 0.0, lse)[..., None])
    values = latent[..., rows.layout.num_channels - read.value_rank :]
    # Nor what lies where nobody looks, which may be anything.
    values = torch.where((lost | ~seen.any(dim=1))[..., None], 0.0, values)
    output = torch.matmul(probabilities, values[:, None])  # (B, H, T, Rv)
    return output.transpose(1, 2).to(query.dtype), lse.transpose(1, 2).contiguous()


def _scores(query: Tensor, latent: Tensor, layout: RowLayout, read: LatentRead) -> Tensor:
    """Scores (B, H, T, S) before scale, of queries (B, T, H, K) and latents (B, S, R)."""
    heads = query.transpose(1, 2)
    if read.block_up is not None:
        return _scores_in_blocks(heads, latent[..., : read.key_rank], read.block_up)
    if read.key_up is None:
        return torch.matmul(heads, latent[:, None, :, : read.key_rank].transpose(2, 3))
    keys = rebuilt_keys(latent, layout, read.key_up)
    group = heads.shape[1] // keys.shape[1]
    return torch.matmul(heads, keys.repeat_interleave(group, dim=1).transpose(2, 3))


def rebuilt_keys(latent: Tensor, layout: RowLayout, key_up: KeyUp) -> Tensor:
    """Keys (B, J, S, D), rotated by slot, of latents (B, S, R)."""
    num_heads, _, rank = key_up.weight.shape
    if key_up.per_head:
        own = _own_channels(latent, layout, num_heads, rank)
    else:
        own = latent[:, None, :, :rank]
    keys = torch.matmul(own, key_up.weight.float().transpose(1, 2))
    keys = keys + key_up.bias.float()[:, None]
    if key_up.norm_weight is not None:
        mean_square = keys.square().mean(dim=-1, keepdim=True)
        keys = keys * torch.rsqrt(mean_square + key_up.norm_epsilon) * key_up.norm_weight.float()
    if key_up.cos is None or key_up.sin is None:
        return keys
    cos, sin = (angle[: latent.shape[1]].float() for angle in (key_up.cos, key_up.sin))
    return _turned(keys, cos, sin)


def _scores_in_blocks(query: Tensor, channels: Tensor, block_up: BlockUp) -> Tensor:
    """Products (B, H, T, S) of rotated queries (B, H, T, D) and keys of channels (B, S, Rk)."""
    J, block, _ = block_up.mean.shape
    num_slots = channels.shape[1]
    num_blocks = -(-num_slots // block)
    back = block_up.cos[:num_blocks], block_up.sin[:num_blocks]
    turned = _turned(query[..., None, :].expand(-1, -1, -1, num_blocks, -1), *back)
    grouped = turned.unflatten(1, (J, -1))  # (B, J, G, T, blocks, D)
    absorbed = torch.einsum("bjgtnd,jdr->bjgtnr", grouped, block_up.weight.float())
    missing = num_blocks * block - num_slots
    blocks = torch.nn.functional.pad(channels, (0, 0, 0, missing)).unflatten(1, (-1, block))
    scores = torch.einsum("bjgtnr,bnsr->bjgtns", absorbed, blocks)
    scores = scores + torch.einsum("bjgtnd,jsd->bjgtns", grouped, block_up.mean.float())
    return scores.flatten(1, 2).flatten(-2)[..., :num_slots]


def _own_channels(latent: Tensor, layout: RowLayout, num_heads: int, rank: int) -> Tensor:
    """Key channels of each head's own, (B, J, S, rank), of latents (B, S, R)."""
    runs = [run.channels for run in layout.between(0, num_heads * rank)]
    parts = latent[..., : num_heads * rank].split(runs, dim=-1)
    own = torch.cat([part.unflatten(-1, (num_heads, -1)) for part in parts], dim=-1)
    return own.transpose(1, 2)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., n, D) with its first channels rotated by angles (n, rotary dim / 2)."""
    half = cos.shape[1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
