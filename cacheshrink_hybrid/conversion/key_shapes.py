"""How the keys of attention modules split up, and which cannot be stored rotated."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import UnsupportedModelError
from ..latents.attention.native_parts import NativeParts
from ..latents.attention.parts import AttentionParts
from ..latents.fit.factors import KeyShape
from ..latents.fit.rotate import BLOCK_SLOTS


def key_shape(part: AttentionParts) -> KeyShape:
    J, D = part.num_key_value_heads, part.head_dim
    if part.rotary is None:
        return KeyShape(num_heads=J, head_dim=D, cannot_rotate="they are not rotated at all")
    pairs = part.rotary.rotated_pairs(D)
    reason = angles = other = None
    if part.k_norm is not None:
        reason = "they are normalised"
    elif part.rotary.depends_on_length:
        reason = "their angles depend on the length of the text"
    elif pairs is None:
        reason = "the rotation does not turn pairs of channels, (i, i + n) or (2i, 2i + 1)"
    elif pairs.neighbours:
        other = "the rotation does not turn pairs (i, i + n) of channels"
    else:
        exact = torch.empty(0, device=part.key.weight().device)
        cos, sin = part.rotary.place_angles(0, BLOCK_SLOTS, BLOCK_SLOTS, exact)
        angles = torch.atan2(sin, cos)[0, :, : pairs.width // 2].to("cpu", torch.float64)
    return KeyShape(
        num_heads=J,
        head_dim=D,
        rotary_dim=D if pairs is None else pairs.width,
        neighbours=pairs is not None and pairs.neighbours,
        block_angles=angles,
        cannot_rotate=reason or other,
        cannot_decouple=reason,
    )


def check_decoupled(parts: Iterable[AttentionParts]) -> None:
    """Refuse modules whose rotated keys cannot be split into a rotary key and the rest.

    Raises:
        UnsupportedModelError: for such modules.
    """
    for part in parts:
        if part.rotary is None:
            continue
        reason = key_shape(part).cannot_decouple
        if isinstance(part, NativeParts):
            reason = "the model has one rotary key for all heads already"
        if reason is None and part.readers:
            reason = f"layers {', '.join(map(str, part.readers))} read them as well"
        if reason is None and part.softcap is not None:
            reason = "their scores have a softcap"
        if reason is None and part.sinks is not None:
            reason = "logits without a value take part in their softmax"
        if reason is not None:
            raise UnsupportedModelError(
                f"keys of layer {part.layer_ids[0]} cannot be decoupled from their rotation: "
                f"{reason}; use another compression_method than 'decoupled_rope'"
            )
