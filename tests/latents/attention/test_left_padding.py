"""Attention masks, and the left padding that is read from them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.latents.attention.left_padding import first_visible

PADDED = [0, 3, 5]


def _two_dimensional(num_slots: int) -> Tensor:
    return (torch.arange(num_slots) >= torch.tensor(PADDED)[:, None]).long()


def _causal(num_new: int, num_slots: int, window: int | None = None) -> Tensor:
    """Boolean (B, 1, num_new, num_slots) of the last tokens."""
    key, query = torch.arange(num_slots), torch.arange(num_slots - num_new, num_slots)[:, None]
    seen = (key <= query) & (key >= torch.tensor(PADDED)[:, None, None])
    if window is not None:
        seen = seen & (key > query - window)
    return seen[:, None]


@pytest.mark.parametrize("num_new", [1, 4])
@pytest.mark.parametrize("kind", ["two-dimensional", "boolean", "additive"])
def test_first_visible_slots(kind: str, num_new: int) -> None:
    mask = _two_dimensional(12) if kind == "two-dimensional" else _causal(num_new, 12)
    if kind == "additive":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    reason, first = first_visible(mask, 3, num_new, 12, 0, None)
    assert reason is None and first is not None
    assert first.tolist() == PADDED and first.dtype == torch.int32


def test_nothing_is_hidden() -> None:
    assert first_visible(None, 2, 1, 9, 0, None) == (None, None)
    assert first_visible(torch.ones(2, 9), 2, 1, 9, 0, None) == (None, None)


def test_layers_with_and_without_a_window_share_a_mask() -> None:
    """What a window no longer shows is still hidden from layers without one."""
    mask = _two_dimensional(12)
    _, behind_the_padding = first_visible(mask, 3, 1, 4, 8, 4)
    assert behind_the_padding is None
    _, first = first_visible(mask, 3, 1, 12, 0, None)
    assert first is not None and first.tolist() == PADDED
    _, first = first_visible(mask, 3, 1, 8, 4, 8)
    assert first is not None and first.tolist() == [4, 4, 5]


def test_a_window_that_begins_behind_the_padding() -> None:
    assert first_visible(_causal(2, 12, window=4), 3, 2, 12, 0, 4) == (None, None)


def test_a_mask_that_changes_is_read_again() -> None:
    mask = _two_dimensional(9)
    first_visible(mask, 3, 1, 9, 0, None)
    mask[0, :2] = 0
    _, first = first_visible(mask, 3, 1, 9, 0, None)
    assert first is not None and first.tolist() == [2, 3, 5]
    with torch.inference_mode():
        changing = _two_dimensional(9)
        first_visible(changing, 3, 1, 9, 0, None)
        changing[0, :2] = 0
        _, first = first_visible(changing, 3, 1, 9, 0, None)
    assert first is not None and first.tolist() == [2, 3, 5]


def test_masks_are_not_kept() -> None:
    mask = _two_dimensional(9)
    kept = weakref.ref(mask)
    first_visible(mask, 3, 1, 9, 0, None)
    del mask
    gc.collect()
    assert kept() is None


def test_other_masks() -> None:
    reason, _ = first_visible(object(), 1, 1, 4, 0, None)
    assert reason is not None and "is a object" in reason
    holes = torch.ones(1, 6)
    holes[0, 3] = 0
    reason, _ = first_visible(holes, 1, 1, 6, 0, None)
    assert reason is not None and "not causal from each sequence's first visible" in reason
    by_head = _causal(2, 6).repeat(1, 2, 1, 1)
    by_head[0, 1, 0, 1] = False
    reason, _ = first_visible(by_head, 3, 2, 6, 0, None)
    assert reason is not None and "differs between heads" in reason
