"""A projection's rows are those of the layer as it is when they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from cacheshrink_hybrid.latents.attention.parts import Projection


@pytest.mark.parametrize("rows", [None, torch.tensor([4, 1])], ids=["all", "some"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: Conv1D(5, 6)])
def test_changed_weights_are_seen(make, rows: torch.Tensor | None) -> None:
    """Also where a parameter was given other data, as training with cut weights does."""
    layer = make()
    nn.init.normal_(layer.bias)
    projection, x = Projection("key", layer, rows), torch.randn(3, 6)
    layer.weight.data = torch.randn_like(layer.weight)
    layer.bias.data = torch.randn_like(layer.bias)
    due = layer(x) if rows is None else layer(x)[:, rows]
    found = nn.functional.linear(x, projection.weight(), projection.bias())
    torch.testing.assert_close(found, due)
