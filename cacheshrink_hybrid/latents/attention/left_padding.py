"""Which slots a batch padded on the left does not see, read from its attention mask.

What a model remembers of a row must be its last tokens: keys are rotated by their slot, and a
recurrent state takes in every token that it is fed. Kernels take no masks at all, but the first
visible slot of each sequence; a mask that says anything else is not for them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...errors import NotSupportedError

Found = tuple[str | None, Tensor | None]

_FOUND: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""What was found by mask, and by what else it depends on: the layers of a pass share few masks."""


def check_padding(attention_mask: Any) -> None:
    """Refuse a mask (B, slots) of a text and what follows it with padding anywhere but on the left;
    other forms of masks are those of attention functions, and say nothing of rows.

    Raises:
        NotSupportedError: for rows with masked tokens after visible ones.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        return
    valid = attention_mask.bool()
    if bool((valid[:, :-1] & ~valid[:, 1:]).any()):
        raise NotSupportedError(
            "attention_mask has masked tokens after visible ones, on top of a cache; what is "
            "remembered of a row must be its last tokens, so pad on the left "
            "(tokenizer.padding_side='left')"
        )


def first_visible(
    mask: Any, batch: int, num_new: int, num_keys: int, first_key: int, window: int | None
) -> Found:
    """(what is wrong, first visible slots (B,) int32) of a mask that may hide the first slots;
    None for the slots if all are seen.

    Args:
        mask: as the attention function takes it: (B, slots) or (B, 1 or H, num_new, slots).
        num_new: tokens of the pass.
        num_keys, first_key: slots that a layer reads, and the first of them.
        window: of the layer; None for none.
    """
    if mask is None:
        return None, None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return (
            f"its attention mask is a {type(mask).__name__}; kernels take left padding only",
            None,
        )
    place = (batch, num_new, num_keys, first_key, window)
    if mask.is_inference():  # whose changes are not counted
        return _found(mask, *place)
    known = _FOUND.setdefault(mask, {})
    asked = (mask._version, *place)
    if asked not in known:
        known[asked] = _found(mask, *place)
    return known[asked]


def first_visible_slots(mask: Any, num_keys: int, device: torch.device) -> Tensor:
    """Slot of each row's first token that is not padding, (B or 1,), from a mask (B, slots) or 4-d,
    or None; `num_keys` where there is none yet.

    Raises:
        NotSupportedError: for masks in another form.
    """
    if mask is None:
        return torch.zeros(1, dtype=torch.long, device=device)
    if not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
        raise NotSupportedError(
            f"exact_sinks and exact_window need attention masks as tensors, and this attention "
            f"implementation makes a {type(mask).__name__}; use attn_implementation 'sdpa', "
            "'eager' or 'flash_attention_2'"
        )
    seen = mask[:, -num_keys:].bool() if mask.ndim == 2 else _visible(mask[:, 0, -1, :num_keys])
    return _first_of(seen)


def _visible(mask: Tensor) -> Tensor:
    """A boolean or additive mask as a boolean one."""
    return mask if mask.dtype == torch.bool else mask > 0.5 * torch.finfo(mask.dtype).min


def _first_of(seen: Tensor) -> Tensor:
    """Where the first one lies along the last axis; its length where there is none."""
    return torch.where(seen.any(-1), seen.long().argmax(-1), seen.shape[-1])


def _found(
    mask: Tensor, batch: int, num_new: int, num_keys: int, first_key: int, window: int | None
) -> Found:
    if mask.ndim == 2:
        visible = mask[:, -num_keys:].bool()[:, None]
    else:
        visible = _visible(mask[:, 0, :, :num_keys])
    count, key = visible.shape[-1], torch.arange(visible.shape[-1], device=mask.device)
    hidden = _first_of(visible.any(dim=1))
    due, matters = key >= hidden[:, None, None], torch.ones_like(visible[..., :1])
    if mask.ndim == 4:
        query = torch.arange(count - num_new, count, device=mask.device)[:, None]
        if window is not None:
            # Where windows begin behind the padding, they say nothing of it.
            hidden = torch.where(hidden <= count - num_new - window + 1, 0, hidden)
        due = (key >= hidden[:, None, None]) & (key <= query)
        if window is not None:
            due = due & (key > query - window)
        matters = query >= hidden[:, None, None]  # what padding sees is of no interest
    if mask.ndim == 4 and mask.shape[1] > 1 and not bool((mask == mask[:, :1]).all()):
        return "its attention mask differs between heads", None
    if not bool(((visible == due) | ~matters).all()):
        return "its attention mask is not causal from each sequence's first visible token on", None
    if not bool(hidden.any()):
        return None, None
    return None, (hidden + first_key).int().expand(batch).contiguous()
