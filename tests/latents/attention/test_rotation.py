"""All ways to rotate channels are one rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.latents.attention.rotation import (
    in_pairs,
    of_length_one,
    turn_pairs_,
    turned_halves,
)

B, HEADS, T, D = 2, 3, 5, 8


def angles(batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """cos and sin (B, T, D), and cos + i sin of each pair (B, T, D/2)."""
    found = torch.randn(batch_size, T, D // 2)
    both = found.repeat(1, 1, 2)
    return both.cos(), both.sin(), torch.polar(torch.ones_like(found), found)


def test_halves_and_pairs_in_place() -> None:
    x = torch.randn(B, HEADS, T, D)
    for batch_size in (1, B):
        cos, sin, turn = angles(batch_size)
        due = turned_halves(x, cos, sin)
        for row in range(B):  # each with its own angles
            at = slice(row, row + 1) if batch_size > 1 else slice(None)
            alone = turned_halves(x[row : row + 1], cos[at], sin[at])
            torch.testing.assert_close(due[row : row + 1], alone)
        pairs = in_pairs(x).transpose(1, 2).contiguous()
        turn_pairs_(pairs, turn[:, :, None])
        torch.testing.assert_close(pairs, in_pairs(due).transpose(1, 2))


def test_angles_of_length_one() -> None:
    """As those of models that lengthen what they rotate."""
    cos, sin, _ = angles(1)
    found = of_length_one(1.3 * cos, 1.3 * sin)
    torch.testing.assert_close(torch.stack(found), torch.stack([cos, sin]))
