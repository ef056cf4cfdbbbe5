"""`latent_decode` in plain torch, shaped like the formula."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ....codecs.row_layout import RowLayout
from ..paged_rows import PagedRows
from ..row_reference import gather_latents
from .read import ExactPages, KeyUp, LatentRead


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
    exact: ExactPages | None,
    beside: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode` and `latent_prefill`; float32 arithmetic."""
    B, T, H, _ = query.shape
    device = query.device
    num_slots = int(context_lens.max()) if B else 0
    lens = torch.full_like(context_lens, T) if query_lens is None else query_lens
    position = (context_lens - lens)[:, None] + torch.arange(T, device=device)  # (B, T)
    position = position[..., None]
    first = torch.zeros_like(context_lens) if first_slots is None else first_slots
    first = first[:, None]

    latent, slot, has_frame = _gathered(rows, frame_table, num_slots)
    seen = slot >= (first + read.exact_sinks)
    seen = (seen & has_frame)[:, None] & (slot[:, None] <= position - read.exact_window)
    for pages, table, is_first in _exact_parts(exact):
        count = read.exact_sinks if is_first else num_slots
        more, at, there = _gathered(pages, table, count)
        at = at + first if is_first else at
        recent = at[:, None] > position - read.exact_window
        due = (~recent if is_first else recent) & (at[:, None] <= position)
        latent, slot = torch.cat([latent, more], dim=1), torch.cat([slot, at], dim=1)
        seen = torch.cat([seen, due & (there & (at >= first))[:, None]], dim=2)
    if read.window is not None:
        seen = seen & (slot[:, None] > position - read.window)
    if query_lens is not None:
        seen = seen & (torch.arange(T, device=device) < lens[:, None])[..., None]

    # Those who see a lost token get its NaN by its score; 0 * NaN must not reach the others.
    lost = latent.isnan().all(dim=-1)
    scores = _scores(query.float(), latent, slot, rows.layout, read)
    if offset is not None:
        scores = scores + offset.float().transpose(1, 2)[..., None]
    scores = scores * read.scale
    if read.softcap is not None:
        scores = torch.tanh(scores / read.softcap) * read.softcap
    scores = torch.where(lost[:, None, None], torch.nan, scores)
    scores = scores.masked_fill(~seen[:, None], -torch.inf)
    if beside is not None:
        scores = torch.cat([scores, beside[1].transpose(1, 2)[..., None]], dim=-1)
    if read.sinks is not None:
        sinks = read.sinks.float().view(1, H, 1, 1).expand(B, H, T, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    if scores.shape[-1] == 0:
        empty = query.new_zeros(B, T, H, read.value_rank)
        return empty, torch.zeros(B, T, H, device=query.device)
    # A query that sees nothing has probabilities of zero, not NaN.
    largest = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - torch.where(largest == -torch.inf, 0.0, largest))
    norm = weights.sum(dim=-1, keepdim=True)
    probabilities = weights / torch.where(norm == 0, 1.0, norm)
    values = latent[..., rows.layout.num_channels - read.value_rank :]
    # Nor what lies where nobody looks, which may be anything.
    values = torch.where((lost | ~seen.any(dim=1))[..., None], 0.0, values)
    here = probabilities[..., : latent.shape[1]]
    output = torch.matmul(here, values[:, None])  # (B, H, T, Rv)
    total = here.sum(dim=-1)
    if beside is not None:
        elsewhere = probabilities[..., latent.shape[1]]
        output = output + elsewhere[..., None] * beside[0].transpose(1, 2)
        total = total + elsewhere
    return output.transpose(1, 2).to(query.dtype), total.transpose(1, 2).contiguous()


def _gathered(rows: PagedRows, frame_table: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first latents of each sequence (B, n, R), their places in its table, and which of them
    have a frame, (B, n) each."""
    count = min(count, frame_table.shape[1] * rows.frame_tokens)
    latent, has_frame = gather_latents(rows, frame_table, count)
    places = torch.arange(count, device=latent.device).expand(len(frame_table), -1)
    return latent, places, has_frame


def _exact_parts(exact: ExactPages | None) -> Iterator[tuple[PagedRows, Tensor, bool]]:
    """Rows, table, and whether they are of the first tokens."""
    if exact is not None and exact.recent is not None and exact.recent_table is not None:
        yield exact.recent, exact.recent_table, False
    if exact is not None and exact.first is not None and exact.first_table is not None:
        yield exact.first, exact.first_table, True


def _scores(
    query: Tensor, latent: Tensor, slot: Tensor, layout: RowLayout, read: LatentRead
) -> Tensor:
    """Scores (B, H, T, S) before scale, of queries (B, T, H, K) and latents (B, S, R) of these
    slots (B, S)."""
    heads = query.transpose(1, 2)
    if read.key_up is None:
        return torch.matmul(heads, latent[:, None, :, : read.key_rank].transpose(2, 3))
    keys = rebuilt_keys(latent, layout, read.key_up, slot)
    group = heads.shape[1] // keys.shape[1]
    return torch.matmul(heads, keys.repeat_interleave(group, dim=1).transpose(2, 3))


def rebuilt_keys(latent: Tensor, layout: RowLayout, key_up: KeyUp, slot: Tensor) -> Tensor:
    """Keys (B, J, S, D), rotated by their slots (B, S), of latents (B, S, R)."""
    num_heads, _, rank = key_up.weight.shape
    if key_up.per_head:
        runs = [run.channels for run in layout.between(0, num_heads * rank)]
        parts = latent[..., : num_heads * rank].split(runs, dim=-1)
        own = torch.cat([part.unflatten(-1, (num_heads, -1)) for part in parts], dim=-1)
        own = own.transpose(1, 2)  # (B, J, S, rank)
    else:
        own = latent[:, None, :, :rank]
    keys = torch.matmul(own, key_up.weight.float().transpose(1, 2))
    keys = keys + key_up.bias.float()[:, None]
    if key_up.norm_weight is not None:
        mean_square = keys.square().mean(dim=-1, keepdim=True)
        keys = keys * torch.rsqrt(mean_square + key_up.norm_epsilon) * key_up.norm_weight.float()
    if key_up.cos is None or key_up.sin is None:
        return keys
    half = key_up.cos.shape[1]
    at = slot.clamp_max(len(key_up.cos) - 1).long()
    cos, sin = (angle[at].float()[:, None] for angle in (key_up.cos, key_up.sin))
    first, second, rest = keys.split([half, half, keys.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
