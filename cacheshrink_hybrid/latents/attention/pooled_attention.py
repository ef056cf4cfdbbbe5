"""Whether a latent attention module meets its history in the pool by kernels, and how it does.

A cache that decodes by kernels is a `RowMemory` that gives out a `RowStep`. The module then writes
the rows of the new tokens and reads all rows where they lie; nothing of the size of the history is
written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...codecs.row_layout import RowLayout
from ...codecs.straight_through import has_gradients
from ...errors import KernelUnavailableError
from ...pool.memory import RowMemory, RowStep
from ..exact_tokens import ExactTokens
from ..plan import LatentPlan
from .dense_read import MAX_DECODE_TOKENS, Angles
from .left_padding import first_visible
from .maps import unlike_matrices
from .pooled_exact import read_exact_copies
from .pooled_read import (
    append_to_pool,
    decode_from_pool,
    latent_read,
    prefill_from_pool,
    row_layout,
    rows_in_pool,
)
from .prefill import expanded_prefill, expanding_pays
from .slot_rotary import turn_channels

if TYPE_CHECKING:
    from .module import LatentAttention


_FAULTS: WeakKeyDictionary[LatentAttention, dict[torch.dtype, str | None]] = WeakKeyDictionary()
_LAYOUTS: WeakKeyDictionary[LatentAttention, tuple[LatentPlan, torch.dtype, RowLayout]] = (
    WeakKeyDictionary()
)
"""What is worked out once per module, of its plan alone; kept apart from modules, which are copied
and saved."""


def row_step(
    module: LatentAttention, cache: Any, layer_idx: int, hidden: Tensor, mask: Any
) -> RowStep | None:
    """The step of a layer by kernels, or None where torch reads its history.

    Args:
        hidden: the module's input, (B, T, E).
        mask: as the attention function takes it.

    Raises:
        KernelUnavailableError: the cache's backend is `triton`, and that cannot run here, or
            kernels cannot take this step.
    """
    if not isinstance(cache, RowMemory) or cache.backend == "torch":
        return None
    reason, first_slots = why_not(module, hidden), None
    if reason is None and not cache.get_seq_length(layer_idx):
        return None  # without history there is nothing to read
    if reason is None and has_gradients(module, hidden):
        reason = "kernels have no backward pass; decode within torch.no_grad()"
    batch, num_new = hidden.shape[:2]
    if reason is None and not cache.slots_are_positions:
        num_keys, first_key = cache.get_mask_sizes(num_new, layer_idx)
        reason, first_slots = first_visible(
            mask, batch, num_new, num_keys, first_key, module.sliding_window
        )
    if reason is not None:
        if cache.backend == "triton":
            raise KernelUnavailableError(f"layer {layer_idx} is not read by kernels: {reason}")
        return None
    return cache.row_step(layer_idx, batch, num_new, first_slots)


def why_not(module: LatentAttention, like: Tensor) -> str | None:
    """What keeps kernels from reading a module's rows; None if nothing does.

    Args:
        like: a tensor of the activations' type and device.
    """
    unlike = unlike_matrices(module, like)
    if unlike is not None:
        return f"its {unlike} is not one linear map for all tokens"
    known, dtype = _FAULTS.setdefault(module, {}), like.dtype
    if dtype not in known:
        try:
            if module.rotary is not None and module.rotary.depends_on_length:
                raise KernelUnavailableError("its angles depend on the length of the text")
            _layout_of(module, dtype)
            latent_read(module, 1, like)
            known[dtype] = None
        except KernelUnavailableError as fault:
            known[dtype] = str(fault)
    return known[dtype]


def attend_in_pool(
    module: LatentAttention,
    query: Tensor,
    latent: Tensor,
    step: RowStep,
    position_embeddings: Angles | None,
    copies: ExactTokens | None = None,
) -> Tensor:
    """Write the new latents (B, T, R) to the pool and read it; heads' outputs (B, T, H*D).

    Args:
        query: before rotation, (B, H, T, D).
        position_embeddings: angles of the new tokens by position.
        copies: of the tokens that are read exactly, if there are such; takes the new ones in.
    """
    angles = position_embeddings if module.rotary is not None else None
    if angles is not None and step.first_new is not None:
        assert module.rotary is not None
        angles = module.rotary.window_angles(step.first_new, 0, step.num_slots, query)[0]
    if angles is not None:
        assert module.rotary is not None
        query = module.rotary.rotate(query, *angles)
        if module.plan.frequencies is not None:
            frequencies = module.frequencies(latent.device)
            latent = turn_channels(latent, frequencies, *angles)
    layout, read = _layout_of(module, latent.dtype), latent_read(module, step.num_slots, latent)
    rows = rows_in_pool(layout, step.arena, step.frame_bytes, step.lifetime, step.place)
    flat = latent.flatten(0, 1)
    append_to_pool(module, flat, rows, step.slot_mapping, backend=step.backend)
    num_new, whole = query.shape[2], step.ends_together and step.first_slots is None
    context_lens, first_slots, beside = step.context_lens, step.first_slots, None
    if copies is not None:
        first = torch.zeros_like(context_lens) if first_slots is None else first_slots
        exact = copies.update(latent, first.long())
        beside = read_exact_copies(module, query, exact, step.num_slots)
        # As if the queries stood before their window: then they see what lies behind the sinks.
        context_lens = (context_lens - module.plan.exact_window).clamp_min(0)
        first_slots = first + module.plan.exact_sinks
    if num_new <= MAX_DECODE_TOKENS:
        attend = decode_from_pool
    elif whole and copies is None and expanding_pays(module, read, num_new):
        return expanded_prefill(module, query, rows, step.frame_table, step.num_slots)
    else:
        attend = prefill_from_pool
    return attend(
        module,
        query,
        rows,
        step.frame_table,
        context_lens,
        read=read,
        first_slots=first_slots,
        beside=beside,
        backend=step.backend,
    )


def _layout_of(module: LatentAttention, dtype: torch.dtype) -> RowLayout:
    """The layout of a module's rows, kept until its plan changes."""
    kept = _LAYOUTS.get(module)
    if kept is None or kept[0] is not module.plan or kept[1] != dtype:
        kept = _LAYOUTS[module] = (module.plan, dtype, row_layout(module, dtype))
    return kept[2]


def kept_tensors(module: LatentAttention) -> object:
    """What `attend_in_pool` keeps between steps for a module, for those who have to keep it alive:
    a recorded graph knows its addresses only."""
    return None if module.rotary is None else module.rotary.kept_pair_angles()
