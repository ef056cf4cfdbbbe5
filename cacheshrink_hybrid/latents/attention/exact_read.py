"""Reading a context of rows in which some tokens are exact (`latents.exact_tokens`).

Every query has its own window, so keys and values exist twice where queries differ: scores are
formed against both and each query takes the ones it is due. Long chunks go in blocks of queries, so
that memory grows with the context, not with its square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import NotSupportedError
from ..exact_tokens import ExactView
from .dense_read import Angles, mixed_values, probabilities_of, read_latents, scores_of

if TYPE_CHECKING:
    from .module import LatentAttention

QUERY_BLOCK = 64


def first_visible_slots(mask, batch_size: int, num_keys: int, device: torch.device) -> Tensor:
    """Slot of each row's first token that is not padding, (B,), from a 4-d mask or None."""
    if mask is None:
        return torch.zeros(batch_size, dtype=torch.long, device=device)
    if not (isinstance(mask, Tensor) and mask.ndim == 4):
        raise NotSupportedError(
            "exact_sinks and exact_window need 4-d attention masks, which this attention "
            "implementation does not make; use attn_implementation 'sdpa' or 'eager'"
        )
    last = mask[:, 0, -1, :num_keys]
    visible = last if last.dtype == torch.bool else last > 0.5 * torch.finfo(last.dtype).min
    first = torch.where(visible.any(-1), visible.long().argmax(-1), num_keys)
    return first.expand(batch_size)


def read_with_exact(
    module: LatentAttention,
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
        return read_latents(module, query, merged, mask, angles)
    outputs, weights = [], []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        chosen = due[:, None, block]
        queries = query[:, :, block]
        scores = torch.where(
            chosen,
            scores_of(module, queries, copies, angles),
            scores_of(module, queries, latent, angles),
        )
        rows = _rows_of(mask, block, key_slots, query_slots)
        probabilities = probabilities_of(module, scores, rows)
        output = mixed_values(module, probabilities * chosen, copies)
        outputs.append(output + mixed_values(module, probabilities * ~chosen, latent))
        weights.append(probabilities)
    return torch.cat(outputs, dim=1), torch.cat(weights, dim=2)


def _rows_of(mask: Tensor | None, block: slice, key_slots: Tensor, query_slots: Tensor) -> Tensor:
    """The mask's rows of a block of queries; causal where there is no mask."""
    if mask is None:
        return (key_slots <= query_slots[block, None])[None, None]
    return mask[:, :, block, : len(key_slots)]
