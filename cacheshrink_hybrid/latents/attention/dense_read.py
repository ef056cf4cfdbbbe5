"""Reading a context of latents that comes as a tensor, by torch.

Few queries (decoding) form their scores against the latents and mix latents, so values are never
expanded. Many queries (prefill) expand keys and values once and call the attention function that
the model is configured with (SDPA, FlashAttention, eager, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .head import LatentHead
from .paired_keys import keeps_pairs, products_in_pairs
from .rotary_key import absorbed_split, split_keys
from .rotated_keys import products_in_blocks
from .rotation import Angles

# Up to this many query tokens, scores over the whole context are cheaper than expanded values, and
# small enough to hold. Covers decoding and the verification step of assisted decoding.
MAX_DECODE_TOKENS = 8

Attend = Callable[[Tensor, Tensor, Tensor, Any], tuple[Tensor, Tensor | None]]
"""An attention function of queries (B, H, T, D), keys and values (B, J, S, D) and a mask."""


def reads_directly(head: LatentHead, query: Tensor, mask: Any) -> bool:
    """Whether scores are formed against the latents, rather than by expanding K and V.

    Projections that are no matrix, such as those with an adapter per sequence, are run over the
    whole context.
    """
    plain_mask = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    if query.shape[2] > MAX_DECODE_TOKENS or not plain_mask:
        return False
    return head.unlike_matrices(query) is None


def without_empty_slots(
    head: LatentHead,
    query: Tensor,
    num_keys: int,
    first_query_slot: int | Tensor,
    first_key_slot: int | Tensor,
) -> Tensor | None:
    """The mask (1, 1, T, S) of queries (B, H, T, D) over what a static layer gives out, in the
    place of one that transformers left out.

    It leaves masks out for attention functions that know how queries and slots lie to each other:
    of a first pass, and of single tokens unless the whole cache can be compiled. Here S counts
    slots that nothing was written to yet, so None stands only where such a function reads them.
    """
    num_new = query.shape[2]
    if num_new > MAX_DECODE_TOKENS and head.softcap is None:
        return None
    slots = torch.arange(num_keys, device=query.device) + first_key_slot
    own = torch.arange(num_new, device=query.device)[:, None] + first_query_slot
    visible = slots <= own
    if head.window is not None:
        visible &= slots > own - head.window
    return visible[None, None]


def read_latents(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    mask: Tensor | None,
    angles: Angles | None,
    first_slot: int,
) -> tuple[Tensor, Tensor]:
    """Few queries against many latents.

    Args:
        query: rotated queries (B, H, T, D).
        latent: (B, S, R).
        mask: (B or 1, 1 or H, T, S), boolean (True is visible) or additive; None for causal.
        angles: cos and sin of the S slots; None where keys are not rotated.
        first_slot: the first of them.

    Returns:
        Heads' outputs (B, T, H*D) and probabilities (B, H, T, S).
    """
    query = head.asking(query)
    # What all scores of a query have in common, softmax does not see.
    alone = head.softcap is None and head.sinks is None
    products = products_of(head, query, latent, angles, first_slot, up_to_constants=alone)
    probabilities = probabilities_of(head, products, mask)
    output = mixed(head, probabilities, latent, complete=head.sinks is None)
    return head.finished(output), probabilities


def products_of(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    angles: Angles | None,
    first_slot: int,
    *,
    up_to_constants: bool = False,
) -> Tensor:
    """Products of queries and the keys of latents (B, S, R), (B, H, T, S).

    Args:
        query: from `LatentHead.asking`.
        angles, first_slot: of the S slots. Where there are more than a block of them, keys that are
            stored rotated are met by their slots, whatever the angles.
        up_to_constants: leave out what is the same for all keys that a query meets.
    """
    if head.expansion is None:
        return _of_keys(head, query, latent, angles, first_slot, up_to_constants)
    keys, values = query.tensor_split((head.head_dim,), dim=-1)
    products = _of_keys(head, keys, latent, angles, first_slot, up_to_constants)
    return products + _of_values(head, values, latent, up_to_constants)


def _of_values(head: LatentHead, query: Tensor, latent: Tensor, up_to_constants: bool) -> Tensor:
    """Products (B, H, T, S) of queries (B, H, T, Dv) and the values of latents (B, S, R)."""
    grouped = head.grouped(query)
    weight, bias = head.value_up.matrix(query)
    absorbed = torch.matmul(grouped, weight).flatten(1, 2)
    products = torch.matmul(absorbed, head.value_channels(latent).transpose(1, 2))
    if not up_to_constants:
        products = products + torch.matmul(grouped, bias.view(1, -1, 1)).flatten(1, 2)
    return products.view(*query.shape[:3], -1)


def _of_keys(
    head: LatentHead,
    query: Tensor,
    latent: Tensor,
    angles: Angles | None,
    first_slot: int,
    up_to_constants: bool,
) -> Tensor:
    """Products (B, H, T, S) of queries (B, H, T, D) and the keys of latents (B, S, R)."""
    B, H, T, _ = query.shape
    if head.stores_rotated and latent.shape[1] > head.plan.block_slots:
        return products_in_blocks(head, query, latent, first_slot)
    if not (head.rebuilds_keys or head.stores_rotated):
        if head.decouples:
            absorbed, offset = absorbed_split(head, query)
        else:
            absorbed, offset = head.absorbed(query, offset=not up_to_constants)
        channels = head.key_channels(latent).transpose(1, 2)
        products = torch.matmul(absorbed, channels)
        if offset is not None:
            products = products + offset[..., None]
        return products.view(B, H, T, -1)
    if head.rebuilds_keys and angles is not None and keeps_pairs(head, query, angles):
        return products_in_pairs(head, query, latent, angles)
    return head.products(query, head.keys(latent, angles, first_slot))


def probabilities_of(head: LatentHead, products: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the scores of products (B, H, T, S), with a mask and the head's sinks."""
    dtype = products.dtype
    scores = masked(head.scores(products), mask)
    if head.sinks is not None:
        B, H, T, _ = scores.shape
        sinks = head.sinks.to(scores.dtype).view(1, H, 1, 1).expand(B, H, T, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    if dtype.itemsize >= torch.float32.itemsize:
        probabilities = torch.softmax(scores, dim=-1)
    else:
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    return probabilities if head.sinks is None else probabilities[..., :-1]


def mixed(
    head: LatentHead, probabilities: Tensor, latent: Tensor, *, complete: bool = False
) -> Tensor:
    """Mixed values (B, T, H*Dv) of probabilities (B, H, T, S) over latents (B, S, R).

    Args:
        complete: the probabilities of each query add up to one.
    """
    rows = probabilities.flatten(1, 2)
    channels = torch.matmul(rows, head.value_channels(latent))
    return head.outputs(channels, None if complete else rows.sum(-1))


def expanded_context(
    head: LatentHead, latent: Tensor, angles: Angles | None, first_slot: int
) -> tuple[Tensor, Tensor]:
    """Keys and values (B, J, S, D) of latents (B, S, R) as many queries meet them.

    Args:
        angles, first_slot: as of `read_latents`.
    """
    keys = split_keys(head, latent) if head.decouples else head.keys(latent, angles, first_slot)
    return head.expanded(keys, head.values(latent))


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a 4-d mask to scores (B, H, T, S); None means causal, the last query sees all."""
    num_new, num_keys = scores.shape[2:]
    if mask is None:
        if num_new == 1:
            return scores
        mask = torch.ones(num_new, num_keys, dtype=torch.bool, device=scores.device)
        mask = mask.tril(num_keys - num_new)
    else:
        mask = mask if mask.shape[-1] == num_keys else mask[..., :num_keys]
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask
