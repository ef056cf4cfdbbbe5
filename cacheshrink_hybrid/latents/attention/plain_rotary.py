"""Angles of plain RoPE, for models that have no module of them, or one that gives another form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .rotation import Angles

BASE = 10000.0


class PlainRotary(nn.Module):
    """Position times 10000^(-2i / width) for each pair i of `width` channels, which lie width / 2
    apart.

    Args:
        width: rotated channels of a head, Dr.
    """

    rope_type = "default"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, position_ids: Tensor) -> Angles:
        """cos and sin of positions (B, T), each (B, T, Dr), as `x`."""
        steps = torch.arange(0, self.width, 2, device=x.device)
        frequencies = 1.0 / BASE ** (steps / self.width)
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
