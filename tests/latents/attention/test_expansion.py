"""Absorbing queries into latents and forming keys and values from them are one computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cacheshrink_hybrid.latents.attention.expansion import Expansion
from cacheshrink_hybrid.latents.attention.maps import HeadMap

B, H, T, S, C, DR, DN, DV = 2, 3, 2, 7, 5, 4, 6, 8


def expansion(*, bias: bool, multiplier: float) -> Expansion:
    torch.manual_seed(0)
    projection = nn.Linear(C, H * (DN + DV), bias=bias, dtype=torch.float64)
    up = HeadMap(
        name="kv_b_proj", projection=projection, num_heads=H, head_dim=DN + DV, num_channels=C
    )
    return Expansion(up=up, qk_nope_head_dim=DN, multiplier=multiplier)


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("multiplier", [1.0, 1.7])
@torch.no_grad()
def test_both_ways_of_reading_agree(bias: bool, multiplier: float) -> None:
    made = expansion(bias=bias, multiplier=multiplier)
    rotary, latents = (torch.randn(B, 1, S, n, dtype=torch.float64) for n in (DR, C))
    asked, still = (torch.randn(B, H, T, n, dtype=torch.float64) for n in (DR, DN))

    keys, values = made.expanded(rotary, latents)
    assert (keys.shape, values.shape) == ((B, H, S, DR + DN), (B, H, S, DV))
    due = torch.softmax(torch.cat([asked, still], dim=-1) @ keys.mT, dim=-1)
    absorbed = asked @ rotary.mT + made.absorbed(still) @ latents.mT
    found = torch.softmax(absorbed, dim=-1)
    torch.testing.assert_close(found, due)

    mixed = (found @ latents).transpose(1, 2).flatten(2)
    torch.testing.assert_close(made.outputs(mixed), (due @ values).transpose(1, 2).flatten(2))


@torch.no_grad()
def test_keys_and_values_are_rows_of_one_weight() -> None:
    made = expansion(bias=False, multiplier=2.0)
    rotary, latents = torch.zeros(1, 1, 1, DR), torch.eye(C)[None, None].double()
    keys, values = made.expanded(rotary.double().expand(1, 1, C, DR), latents)
    weight = made.up.projection.weight.view(H, DN + DV, C)
    torch.testing.assert_close(keys[0, :, :, DR:].mT, 2 * weight[:, :DN])
    torch.testing.assert_close(values[0].mT, 2 * weight[:, DN:])
