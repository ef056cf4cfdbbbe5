"""Whether a latent attention module meets its history in the pool by kernels, and how it does.

A cache that decodes by kernels has a `backend`, and gives out a `RowStep`. The module then writes
the rows of the new tokens and reads all rows where they lie; nothing of the size of the history is
written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..cache.exact_tokens import ExactTokens
from ..cache.paged_step import RowStep
from ..codecs.straight_through import has_gradients
from ..errors import KernelUnavailableError
from ..kernels.backend import Backend, runs_triton
from ..kernels.latent_decode import LatentRead
from ..kernels.row_layout import RowLayout
from .expanded_prefill import expanded_prefill, expanding_pays
from .latent_read import MAX_DECODE_TOKENS, Angles
from .left_padding import first_visible
from .pooled_exact import read_exact_copies
from .pooled_read import (
    append_to_pool,
    decode_from_pool,
    latent_read,
    prefill_from_pool,
    row_layout,
    rows_in_pool,
)
from .slot_rotary import turn_channels

if TYPE_CHECKING:
    from .latent_attention import LatentAttention


_FAULTS: WeakKeyDictionary[LatentAttention, dict[torch.dtype, str | None]] = WeakKeyDictionary()
_READS: WeakKeyDictionary[LatentAttention, tuple[tuple, RowLayout, LatentRead]] = (
    WeakKeyDictionary()
)
"""What is worked out once per module; kept apart from modules, which are copied and saved."""


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
    backend: Backend = getattr(cache, "backend", "torch")
    if backend == "torch" or not runs_triton(backend, hidden.device):
        return None
    reason, first_slots = why_not(module, hidden.dtype), None
    layer = cache.layers[layer_idx]
    if reason is None and not layer.cumulative_length:
        return None  # without history there is nothing to read
    if reason is None and has_gradients(module, hidden):
        reason = "kernels have no backward pass; decode within torch.no_grad()"
    if reason is None and not cache.slots_are_positions:
        batch, num_new = hidden.shape[:2]
        num_keys, first_key = layer.get_mask_sizes(num_new)
        reason, first_slots = first_visible(
            mask, batch, num_new, num_keys, first_key, layer.sliding_window
        )
    if reason is not None:
        if backend == "triton":
            raise KernelUnavailableError(f"layer {layer_idx} is not read by kernels: {reason}")
        return None
    return cache.row_step(layer, *hidden.shape[:2], first_slots)


def why_not(module: LatentAttention, dtype: torch.dtype) -> str | None:
    """What keeps kernels from reading a module's rows; None if nothing does.

    Args:
        dtype: of the model's activations.
    """
    known = _FAULTS.setdefault(module, {})
    if dtype not in known:
        try:
            if module.rotary is not None and module.rotary.depends_on_length:
                raise KernelUnavailableError("its angles depend on the length of the text")
            device = module.kv_a_proj.weight.device
            _read_of(module, 1, torch.empty(0, device=device, dtype=dtype))
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
    layout, read = _read_of(module, step.num_slots, latent)
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


def _read_of(module: LatentAttention, num_slots: int, like: Tensor) -> tuple[RowLayout, LatentRead]:
    """The layout and the `latent_read` of a module, kept until its weights move or more slots are
    needed."""
    weight = module.k_b_proj.weight
    state = (weight.data_ptr(), weight.dtype, like.dtype, like.device)
    kept = _READS.get(module)
    if kept is not None and kept[0] == state:
        key_up = kept[2].key_up
        if key_up is None or key_up.cos is None or len(key_up.cos) >= num_slots:
            return kept[1:]
    layout, read = row_layout(module, like.dtype), latent_read(module, num_slots, like)
    _READS[module] = (state, layout, read)
    return layout, read


def kept_tensors(module: LatentAttention) -> object:
    """What `attend_in_pool` keeps between steps for a module, for those who have to keep it alive:
    a recorded graph knows its addresses only."""
    return _READS.get(module)
