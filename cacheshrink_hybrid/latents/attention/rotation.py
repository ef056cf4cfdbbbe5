"""Rotating channels by angles: the halves of a head, and its pairs in place."""

from __future__ import annotations

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


def of_length_one(cos: Tensor, sin: Tensor) -> Angles:
    """The angles without the factor by which a model's cos and sin may be longer."""
    length = torch.hypot(cos, sin)
    return cos / length, sin / length


def in_pairs(x: Tensor) -> Tensor:
    """Channels (..., D) in the order 0, D/2, 1, D/2 + 1, ..., so that a pair lies side by side."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def turn_pairs_(x: Tensor, turn: Tensor) -> None:
    """Rotate x (B, S, heads, D), channels in pairs, in place by turns (B or 1, S, 1, D/2)."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turn)
