"""Reading a context in which some tokens have exact copies (`latents.exact_tokens`).

Every query has its own window. Of tensors, keys and values therefore exist twice where queries
differ: scores are formed against both and each query takes the ones it is due. In a pool, queries
read their copies here, and kernels the rows between them, which take this part of the softmax in.
Long chunks go in blocks of queries, so that memory grows with the context, not with its square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..exact_tokens import ExactView
from .dense_read import mixed, probabilities_of, products_of, read_latents
from .head import LatentHead
from .rotation import Angles

QUERY_BLOCK = 64


def read_with_exact(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    exact: ExactView,
    first_query_slot: int,
    first_key_slot: int,
    mask: Tensor | None,
    angles: Angles | None,
) -> tuple[Tensor, Tensor]:
    """Attention of queries (B, H, T, D) over decoded latents (B, S, R) and exact copies.

    Returns:
        Heads' outputs (B, T, H*D) and probabilities (B, H, T, S).
    """
    copies = exact.overlaid(latent, first_key_slot)
    query_slots = torch.arange(query.shape[2], device=query.device) + first_query_slot
    key_slots = torch.arange(latent.shape[1], device=query.device) + first_key_slot
    due = exact.reads_exactly(query_slots, key_slots)
    if query.shape[2] == 1:  # one window: each token is read in one form only
        merged = torch.where(due.transpose(1, 2), copies, latent)
        return read_latents(head, query, merged, mask, angles)
    outputs, weights = [], []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        chosen = due[:, None, block]
        queries = query[:, :, block]
        products = torch.where(
            chosen,
            products_of(head, queries, copies, angles),
            products_of(head, queries, latent, angles),
        )
        rows = _rows_of(mask, block, key_slots, query_slots)
        probabilities = probabilities_of(head, products, rows)
        output = mixed(head, probabilities * chosen, copies)
        outputs.append(output + mixed(head, probabilities * ~chosen, latent))
        weights.append(probabilities)
    return torch.cat(outputs, dim=1), torch.cat(weights, dim=2)


def _rows_of(mask: Tensor | None, block: slice, key_slots: Tensor, query_slots: Tensor) -> Tensor:
    """The mask's rows of a block of queries; causal where there is no mask."""
    if mask is None:
        return (key_slots <= query_slots[block, None])[None, None]
    return mask[:, :, block, : len(key_slots)]


def read_copies(
    head: LatentHead, query: Tensor, exact: ExactView, num_slots: int
) -> tuple[Tensor, Tensor]:
    """What rotated queries (B, H, T, D) of the last T of `num_slots` slots read from copies alone.

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
    if head.rebuilds_keys:
        angles = None
        if head.rotary is not None:
            at = slots.clamp(0, num_slots - 1)
            cos, sin = head.rotary.angles(num_slots, query)
            angles = cos[0][at], sin[0][at]
        keys = head.keys(latent, angles)
    values = head.value_channels(latent).float()
    own = torch.arange(num_slots - num_new, num_slots, device=device)
    in_sinks = torch.arange(num_sinks + num_tail, device=device) < num_sinks
    means, sums = [], []
    for start in range(0, num_new, QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        distance = own[block, None] - slots[:, None]  # (B, T, copies)
        recent = distance < exact.window
        seen = (distance >= 0) & torch.where(in_sinks, ~recent, recent)
        seen = seen & (slots >= exact.first[:, None])[:, None]
        queries = query[:, :, block]
        if keys is None:
            products = products_of(head, queries, latent, None)
        else:
            products = head.products(queries, keys)
        scores = head.scores(products.float()).masked_fill(~seen[:, None], -torch.inf)
        total = torch.logsumexp(scores, dim=-1)
        shift = torch.where(total == -torch.inf, 0.0, total)
        means.append(torch.matmul(torch.exp(scores - shift[..., None]), values[:, None]))
        sums.append(total)
    return torch.cat(means, dim=2).transpose(1, 2), torch.cat(sums, dim=2).transpose(1, 2)
