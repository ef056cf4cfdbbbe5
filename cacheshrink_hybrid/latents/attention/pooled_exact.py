"""Exact copies beside rows in the pool (`latents.exact_tokens`): every query reads its window and
the first tokens from copies, in torch, and the rows between them by kernels, which take the other
part of the softmax in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exact_tokens import ExactView
from .dense_read import scores_of
from .exact_read import QUERY_BLOCK

if TYPE_CHECKING:
    from .module import LatentAttention


def read_exact_copies(
    module: LatentAttention, query: Tensor, exact: ExactView, num_slots: int
) -> tuple[Tensor, Tensor]:
    """What rotated queries (B, H, T, D) of the last T of `num_slots` slots read from copies.

    A layer with a sliding window has no sinks, and copies of fewer tokens than its window.

    Returns:
        Mean value channels (B, T, H, Rv) float32, zeros for queries that read no copy, and the
        log-sum-exp of their scores, (B, T, H) float32.
    """
    B, num_sinks = exact.sinks.shape[:2]
    num_new, num_tail = query.shape[2], exact.tail.shape[1]
    device = query.device
    slots = torch.cat(
        [
            exact.first[:, None] + torch.arange(num_sinks, device=device),
            (torch.arange(num_tail, device=device) + num_slots - num_tail).expand(B, -1),
        ],
        dim=1,
    )
    latent = torch.cat([exact.sinks, exact.tail], dim=1).to(query.dtype)
    keys = None
    if module.plan.read_mode == "reconstruct":
        angles = None
        if module.rotary is not None:
            at = slots.clamp(0, num_slots - 1)
            cos, sin = module.rotary.angles(num_slots, query)
            angles = cos[0][at], sin[0][at]
        keys = module.keys(latent, angles)
    values = module.value_channels(latent).float()
    own = torch.arange(num_slots - num_new, num_slots, device=device)
    in_sinks = torch.arange(num_sinks + num_tail, device=device) < num_sinks
    means, sums = [], []
    for start in range(0, num_new, QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        distance = own[block, None] - slots[:, None]  # (B, T, copies)
        recent = distance < exact.window
        seen = (distance >= 0) & torch.where(in_sinks, ~recent, recent)
        seen = seen & (slots >= exact.first[:, None])[:, None]
        scores = _scores(module, query[:, :, block], latent, keys)
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
        total = torch.logsumexp(scores, dim=-1)
        shift = torch.where(total == -torch.inf, 0.0, total)
        means.append(torch.matmul(torch.exp(scores - shift[..., None]), values[:, None]))
        sums.append(total)
    return torch.cat(means, dim=2).transpose(1, 2), torch.cat(sums, dim=2).transpose(1, 2)


def _scores(module: LatentAttention, query: Tensor, latent: Tensor, keys: Tensor | None) -> Tensor:
    """Scores (B, H, T, copies), float32, of what stands in copies (B, copies, R), or of keys."""
    if keys is None:
        products = scores_of(module, query, latent, None)
    else:
        group = module.num_key_value_groups
        products = torch.matmul(query, keys.repeat_interleave(group, dim=1).transpose(2, 3))
    scores = products.float() * module.scaling
    if module.softcap is not None:
        scores = torch.tanh(scores / module.softcap) * module.softcap
    return scores
