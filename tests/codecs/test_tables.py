"""Tables that are worked out once, whatever surrounds the first call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from cacheshrink_hybrid.codecs.tables import table


def squares_and_calls():
    calls = []

    @table
    def squares(count: int) -> Tensor:
        calls.append(count)
        return torch.arange(count).square().float()

    return squares, calls


def test_made_once_for_each_key() -> None:
    squares, calls = squares_and_calls()
    assert squares(4) is squares(4)
    assert squares(3).tolist() == [0, 1, 4]
    assert calls == [4, 3]


@pytest.mark.parametrize(
    "surroundings", [torch.inference_mode, lambda: torch.device("meta"), torch.no_grad]
)
def test_made_as_if_nothing_surrounded_it(surroundings) -> None:
    squares, _ = squares_and_calls()
    with surroundings():
        squares(4)
    kept = squares(4)
    assert kept.device.type == "cpu" and not kept.is_inference()
    (kept * torch.ones(4, requires_grad=True)).sum().backward()


def test_a_tracers_stand_in_is_not_kept() -> None:
    squares, _ = squares_and_calls()
    with FakeTensorMode():
        squares(4)
    assert squares(4).tolist() == [0, 1, 4, 9]
