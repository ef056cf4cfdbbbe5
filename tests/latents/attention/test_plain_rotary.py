"""Angles that attention takes from its positions."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.latents.attention.plain_rotary import PlainRotary
from cacheshrink_hybrid.latents.attention.rotation import of_first_channels, turn_halves_of_both
from cacheshrink_hybrid.latents.attention.slot_rotary import SlotRotary


def test_angles_are_positions_times_frequencies() -> None:
    cos, sin = PlainRotary(4)(torch.zeros(1), torch.tensor([[0, 3]]))
    due = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [3.0, 0.03, 3.0, 0.03]]])
    torch.testing.assert_close(cos, due.cos())
    torch.testing.assert_close(sin, due.sin())


def test_they_are_taken_in_the_place_of_what_the_model_hands_out() -> None:
    own = SlotRotary(PlainRotary(4), of_first_channels(turn_halves_of_both), is_own=True)
    positions, like = torch.tensor([[5, 6]]), torch.zeros(1)
    handed = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    found = own.given_angles(handed, positions, like)
    assert found is not None
    for actual, due in zip(found, PlainRotary(4)(like, positions), strict=True):
        assert torch.equal(actual, due)
    for actual, due in zip(found, own.angles(7, like), strict=True):
        assert torch.equal(actual, due[:, 5:])
    with pytest.raises(NotSupportedError, match="takes its angles from position_ids"):
        own.given_angles(handed, None, like)


def test_a_model_that_hands_out_angles_is_believed() -> None:
    model = SlotRotary(PlainRotary(4), turn_halves_of_both)
    cos, sin = torch.rand(1, 2, 4), torch.rand(1, 2, 4)
    found = model.given_angles((cos, sin), None, cos)
    assert found is not None and found[0] is cos and found[1] is sin
    assert model.given_angles(None, None, cos) is None
