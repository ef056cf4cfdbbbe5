"""How attention reads a context of latents: the read modes of a plan, for few and for many queries.

Few queries (decoding) form their scores against the latents and mix latents, so values are never
expanded. Many queries (prefill) expand keys and values once and call the attention function that
the model is configured with (SDPA, FlashAttention, eager, ...).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .maps import key_map, unlike_matrices, value_map
from .slot_rotary import in_pairs

if TYPE_CHECKING:
    from .module import LatentAttention

# Up to this many query tokens, scores over the whole context are cheaper than expanded values, and
# small enough to hold. Covers decoding and the verification step of assisted decoding.
MAX_DECODE_TOKENS = 8

Angles = tuple[Tensor, Tensor]


def reads_directly(module: LatentAttention, query: Tensor, mask) -> bool:
    """Whether scores are formed against the latents, rather than by expanding K and V.

    Projections that are no matrix, such as those with an adapter per sequence, are run over the
    whole context.
    """
    plain_mask = mask is None or (isinstance(mask, Tensor) and mask.ndim == 4)
    if query.shape[2] > MAX_DECODE_TOKENS or module.training or not plain_mask:
        return False
    return unlike_matrices(module, query) is None


def without_empty_slots(
    module: LatentAttention,
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
    if num_new > MAX_DECODE_TOKENS and module.softcap is None:
        return None
    slots = torch.arange(num_keys, device=query.device) + first_key_slot
    own = torch.arange(num_new, device=query.device)[:, None] + first_query_slot
    visible = slots <= own
    if module.sliding_window is not None:
        visible &= slots > own - module.sliding_window
    return visible[None, None]


def read_latents(
    module: LatentAttention,
    query: Tensor,
    latent: Tensor,
    mask: Tensor | None,
    angles: Angles | None,
) -> tuple[Tensor, Tensor]:
    """Few queries against many latents.

    Args:
        query: rotated queries (B, H, T, D).
        latent: (B, S, R).
        mask: (B or 1, 1 or H, T, S), boolean (True is visible) or additive; None for causal.
        angles: cos and sin of the S slots, where keys are rotated when they are read.

    Returns:
        Heads' outputs (B, T, H*D) and probabilities (B, H, T, S).
    """
    # What all scores of a query have in common, softmax does not see.
    alone = module.softcap is None and module.sinks is None
    scores = scores_of(module, query, latent, angles, up_to_constants=alone)
    probabilities = probabilities_of(module, scores, mask)
    output = mixed_values(module, probabilities, latent, complete=module.sinks is None)
    return output, probabilities


def scores_of(
    module: LatentAttention,
    query: Tensor,
    latent: Tensor,
    angles: Angles | None,
    *,
    up_to_constants: bool = False,
) -> Tensor:
    """Products of queries (B, H, T, D) and the keys in latents (B, S, R), (B, H, T, S).

    Args:
        up_to_constants: leave out what is the same for all keys that a query meets.
    """
    B, H, T, D = query.shape
    J, G = module.num_key_value_heads, module.num_key_value_groups
    grouped = query.reshape(B, J, G * T, D)
    if module.plan.read_mode != "reconstruct":
        weight, bias = key_map(module, query)
        absorbed = torch.matmul(grouped, weight).reshape(B, H * T, -1)
        scores = torch.matmul(absorbed, latent[..., : module.plan.key_rank].transpose(1, 2))
        if not up_to_constants:
            offset = torch.matmul(grouped, bias[:, :, None])
            scores = scores.view(B, J, G * T, -1) + offset
    elif angles is not None and module.keeps_pairs(query, angles):
        k = module.keys_in_pairs(latent, *angles)
        scores = torch.matmul(in_pairs(grouped), k.permute(0, 2, 3, 1))
    else:
        k = module.keys(latent, angles)
        scores = torch.matmul(grouped, k.transpose(2, 3))
    return scores.reshape(B, H, T, -1)


def probabilities_of(module: LatentAttention, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of products (B, H, T, S) with scaling, softcap, mask and sinks of the module."""
    dtype = scores.dtype
    scores = scores * module.scaling
    if module.softcap is not None:
        scores = torch.tanh(scores / module.softcap) * module.softcap
    scores = masked(scores, mask)
    if module.sinks is not None:
        B, H, T, _ = scores.shape
        sinks = module.sinks.to(scores.dtype).view(1, H, 1, 1).expand(B, H, T, 1)
        scores = torch.cat([scores, sinks], dim=-1)
    at_least = torch.promote_types(dtype, torch.float32)
    probabilities = torch.softmax(scores, dim=-1, dtype=at_least).to(dtype)
    return probabilities if module.sinks is None else probabilities[..., :-1]


def mixed_values(
    module: LatentAttention, probabilities: Tensor, latent: Tensor, *, complete: bool = False
) -> Tensor:
    """Heads' outputs (B, T, H*D) of probabilities (B, H, T, S) over latents (B, S, R).

    Args:
        complete: the probabilities of each query add up to one.
    """
    B, H, T, _ = probabilities.shape
    J, G, D = module.num_key_value_heads, module.num_key_value_groups, module.head_dim
    mixed = torch.matmul(probabilities.reshape(B, H * T, -1), module.value_channels(latent))
    weight, bias = value_map(module, latent)
    heads = torch.matmul(mixed.view(B, J, G * T, -1), weight.transpose(1, 2))
    mean = bias[:, None]
    if not complete:
        mean = mean * probabilities.sum(-1, keepdim=True).view(B, J, G * T, 1)
    heads = heads + mean
    return heads.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D)


def read_expanded(
    module: LatentAttention,
    query: Tensor,
    latent: Tensor,
    mask,
    angles: Angles | None,
    kwargs: dict,
) -> tuple[Tensor, Tensor | None]:
    """Many queries: expand keys and values once and call the configured attention function."""
    k = module.keys(latent, angles)
    v = module.values(latent)
    implementation = module.config._attn_implementation
    if module.softcap is not None and implementation == "sdpa":
        implementation = "eager"  # SDPA has no softcap
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    extra = {"softcap": module.softcap, "s_aux": module.sinks}
    output, weights = attend(
        module,
        query,
        k,
        v,
        mask,
        dropout=module.dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=module.sliding_window,
        **{name: value for name, value in extra.items() if value is not None},
        **kwargs,
    )
    return output.reshape(*output.shape[:2], -1), weights


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


def eager_attention(
    module: LatentAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """The attention formula with all options of the module, written out: (B, T, H, D) and
    (B, H, T, S). What else the interface passes repeats these options."""
    group = module.num_key_value_groups
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    probabilities = probabilities_of(
        module, torch.matmul(query, key.transpose(2, 3)), attention_mask
    )
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), probabilities
