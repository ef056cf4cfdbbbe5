"""Rotating channels by angles: the halves of a head, its pairs in place, the pairs of a latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]
"""cos and sin, (B or 1, T, rotary dim) each."""


def turned_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels i and i + D/2 of x (B, heads, T, D) rotated by angles (B or 1, T, D) as most models
    write it: x cos + [-x2, x1] sin."""
    half = x.shape[-1] // 2
    crossed = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    if len(cos) > 1:
        cos, sin = cos[:, None], sin[:, None]
    return x * cos + crossed * sin


def turned_back(cos: Tensor, sin: Tensor) -> Angles:
    """The inverse rotations, of length one also where a model's cos and sin are longer."""
    length = torch.hypot(cos, sin)
    return cos / length, -sin / length


class TurningPairs(NamedTuple):
    """Pairs of neighbouring channels of a latent, its first ones, that are rotated by its slot.

    Attributes:
        frequencies: of each pair, (pairs,); 0 for those that stay as they are.
        still: which ones stay, (pairs,); None for none.
    """

    frequencies: Tensor
    still: Tensor | None


def turning_pairs(frequencies: Sequence[int], device: torch.device) -> TurningPairs:
    """Pairs with these frequencies, -1 for pairs that stay as they are."""
    found = torch.tensor(frequencies, device=device)
    still = found < 0 if min(frequencies, default=0) < 0 else None
    return TurningPairs(found.clamp_min(0), still)


def turn_channels(latent: Tensor, pairs: TurningPairs, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first channels of latents (B, T, R), which are pairs (real, imaginary).

    Args:
        cos, sin: (B or 1, T, rotary dim), of which the first half is one per frequency.
    """
    cos, sin = (angles[..., pairs.frequencies].to(latent.dtype) for angles in (cos, sin))
    if pairs.still is not None:
        cos, sin = torch.where(pairs.still, 1.0, cos), torch.where(pairs.still, 0.0, sin)
    width = 2 * len(pairs.frequencies)
    real, imaginary = latent[..., :width].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return torch.cat([turned.flatten(-2), latent[..., width:]], dim=-1)


def in_pairs(x: Tensor) -> Tensor:
    """Channels (..., D) in the order 0, D/2, 1, D/2 + 1, ..., so that a pair lies side by side."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def turn_pairs_(x: Tensor, turn: Tensor) -> None:
    """Rotate x (B, S, heads, D), channels in pairs, in place by turns (B or 1, S, 1, D/2)."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turn)
