"""All ways to rotate channels are one rotation."""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.latents.attention.rotation import (
    in_pairs,
    turn_channels,
    turn_pairs_,
    turned_halves,
    turning_pairs,
)

B, HEADS, T, D = 2, 3, 5, 8
CPU = torch.device("cpu")


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


def test_pairs_of_a_latent() -> None:
    """Frequencies in any order; some pairs stay, and so do the channels behind them."""
    cos, sin, _ = angles(1)
    x, rest = torch.randn(B, 1, T, D), torch.randn(B, T, 3)
    turned = in_pairs(turned_halves(x, cos, sin))[:, 0].unflatten(-1, (-1, 2))
    latent = in_pairs(x)[:, 0].unflatten(-1, (-1, 2))
    order = [2, 0, -1, 3]
    given = torch.cat([latent[:, :, [2, 0, 1, 3]].flatten(-2), rest], dim=-1)
    kept = latent[:, :, 1:2]
    due = torch.cat([turned[:, :, [2, 0]], kept, turned[:, :, 3:]], dim=2).flatten(-2)
    found = turn_channels(given, turning_pairs(order, CPU), cos, sin)
    torch.testing.assert_close(found, torch.cat([due, rest], dim=-1))
    assert turning_pairs(range(4), CPU).still is None
