"""Rotating channels by angles: the halves of a head, and its pairs in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Angles = tuple[Tensor, Tensor]
"""cos and sin, (B or 1, T, rotary dim) each."""

ApplyRotary = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A model file's `apply_rotary_pos_emb(q, k, cos, sin)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotatedPairs:
    """Channels of a head that turn together.

    Attributes:
        width: channels that turn, the first ones of a head.
        neighbours: pairs are (2i, 2i + 1), not (i, i + width / 2).
        angle_step: the angle of pair i is at i * angle_step of cos and sin.
    """

    width: int
    neighbours: bool = False
    angle_step: int = 1


def as_angles(found: Any, dtype: torch.dtype) -> Angles:
    """cos and sin of what a rotary embedding gives: those, or e^(i angle) of each pair (B or 1, T,
    rotary dim / 2), as complex numbers, which are then made `dtype`."""
    if not isinstance(found, Tensor):
        return found
    turns = torch.cat([found, found], dim=-1)
    return turns.real.to(dtype), turns.imag.to(dtype)


def turn_halves_of_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`turned_halves` as the functions of model files take them."""
    return turned_halves(q, cos, sin), turned_halves(k, cos, sin)


def of_both(apply: Callable[[Tensor, Tensor, Tensor], Tensor]) -> ApplyRotary:
    """The rotation of queries and keys by a model file's function of either of them."""

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return apply(q, cos, sin), apply(k, cos, sin)

    return rotated


def of_first_channels(apply: ApplyRotary) -> ApplyRotary:
    """The rotation of as many of a head's first channels as there are angles; the others stay."""

    def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        width = cos.shape[-1]
        turned = apply(q[..., :width], k[..., :width], cos, sin)
        q, k = (
            torch.cat((first, whole[..., width:]), dim=-1)
            for first, whole in zip(turned, (q, k), strict=True)
        )
        return q, k

    return rotated


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


def in_halves(x: Tensor) -> Tensor:
    """Channels (..., D) in the order 0, 2, ..., 1, 3, ..., so that neighbours lie D/2 apart."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def turn_pairs_(x: Tensor, turn: Tensor) -> None:
    """Rotate x (B, S, heads, D), channels in pairs, in place by turns (B or 1, S, 1, D/2)."""
    torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(turn)
