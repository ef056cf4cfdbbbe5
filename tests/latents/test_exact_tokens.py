"""Exact copies of first and most recent tokens: the right slots, through every operation."""

from __future__ import annotations

import torch
from torch import Tensor

from cacheshrink_hybrid.latents.exact_tokens import ExactTokens, ExactView
from cacheshrink_hybrid.latents.plan import CROP_SLACK

R = 4


def _latents(batch: int, length: int, first: int = 0) -> Tensor:
    """Latents whose values tell row and slot."""
    slots = torch.arange(first, first + length, dtype=torch.float32)
    rows = 1000.0 * torch.arange(batch)
    return (rows[:, None] + slots)[..., None].expand(batch, length, R)


def _exact_slots(view: ExactView, num_slots: int, row: int = 0) -> list[int]:
    """Slots that the last query of a context of `num_slots` reads exactly."""
    coded = torch.full((view.sinks.shape[0], num_slots, R), -1.0)
    copies = view.overlaid(coded, 0)
    due = view.reads_exactly(torch.tensor([num_slots - 1]), torch.arange(num_slots))
    due = due.expand(coded.shape[0], -1, -1)
    slots = due[row, 0].nonzero().flatten().tolist()
    assert copies[row, slots, 0].tolist() == [1000.0 * row + slot for slot in slots]
    return slots


def _fed(copies: ExactTokens, lengths: list[int], first: Tensor | None = None) -> ExactView:
    first = torch.zeros(2, dtype=torch.long) if first is None else first
    for length in lengths:
        view = copies.update(_latents(2, length, copies.num_tokens), first)
    return view


def test_sinks_and_window_are_read_exactly() -> None:
    for lengths in ([20], [7, 1, 1, 11], [1] * 20):
        view = _fed(ExactTokens(2, 5), lengths)
        assert _exact_slots(view, 20) == [0, 1, 15, 16, 17, 18, 19]


def test_sinks_follow_the_padding_of_each_row() -> None:
    view = _fed(ExactTokens(2, 3), [4, 4, 4], torch.tensor([0, 3]))
    assert _exact_slots(view, 12, row=0) == [0, 1, 9, 10, 11]
    assert _exact_slots(view, 12, row=1) == [3, 4, 9, 10, 11]


def test_either_alone() -> None:
    assert _exact_slots(_fed(ExactTokens(3, 0), [6, 1]), 7) == [0, 1, 2]
    assert _exact_slots(_fed(ExactTokens(0, 3), [6, 1]), 7) == [4, 5, 6]


def test_removed_tokens_give_the_window_back() -> None:
    copies = ExactTokens(1, 4)
    _fed(copies, [60])
    copies.truncate(60 - CROP_SLACK)
    view = _fed(copies, [1])
    assert _exact_slots(view, 61 - CROP_SLACK) == [0, *range(57 - CROP_SLACK, 61 - CROP_SLACK)]


def test_rows_are_selected() -> None:
    copies = ExactTokens(1, 2)
    _fed(copies, [5])
    copies.select(torch.tensor([1, 1, 0]))
    assert copies.batch_size == 3
    recent, sinks = copies.tensors()
    assert recent[:, -1, 0].tolist() == [1004.0, 1004.0, 4.0]
    assert sinks[:, 0, 0].tolist() == [1000.0, 1000.0, 0.0]


def test_memory_does_not_grow_with_the_text() -> None:
    copies = ExactTokens(2, 8)
    _fed(copies, [200])
    held = sum(tensor.untyped_storage().nbytes() for tensor in copies.tensors())
    assert held == 2 * (2 + 8 + CROP_SLACK) * R * 2
