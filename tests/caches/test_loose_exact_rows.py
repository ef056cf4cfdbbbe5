"""Exact rows beside a dense cache: those that the pool would keep, through every operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.caches.loose_exact_rows import LooseExactRows
from cacheshrink_hybrid.errors import NotSupportedError
from cacheshrink_hybrid.pool.lifetime import RECENT_HISTORY, WHOLE_STEP
from cacheshrink_hybrid.pool.memory import ExactRows

WIDTH = 4


def rows_of(batch: int, length: int, first: int) -> Tensor:
    """Rows whose values tell sequence and slot."""
    slots = torch.arange(first, first + length)
    return (1000 * torch.arange(batch)[:, None] + slots)[..., None].expand(batch, length, WIDTH)


def fed(
    exact: LooseExactRows, lengths: list[int], first: Tensor | None = None, history: int = 0
) -> ExactRows:
    first = torch.zeros(1, dtype=torch.long) if first is None else first
    for length in lengths:
        found = exact.update(rows_of(2, length, exact.num_tokens), first, history)
    return found


def slots(rows: Tensor, row: int = 0) -> list[int]:
    return (rows[row, :, 0] - 1000 * row).tolist()


def test_sinks_and_window_are_given_out_however_a_text_is_fed() -> None:
    for lengths in ([20], [7, 1, 1, 11], [1] * 20, [19, 1]):
        found = fed(LooseExactRows(2, 5), lengths)
        assert slots(found.first) == [0, 1]
        assert slots(found.recent)[-5:] == [15, 16, 17, 18, 19]
        assert found.begin == slots(found.recent)[0] <= 20 - lengths[-1]


def test_sinks_follow_the_padding_of_each_sequence() -> None:
    found = fed(LooseExactRows(2, 3), [4, 4, 4], torch.tensor([0, 3]))
    assert (slots(found.first, 0), slots(found.first, 1)) == ([0, 1], [3, 4])


def test_a_step_can_be_taken_back() -> None:
    exact = LooseExactRows(1, 4)
    fed(exact, [60, 9])
    exact.truncate(61)
    assert slots(fed(exact, [1]).recent)[-4:] == [58, 59, 60, 61]
    with pytest.raises(NotSupportedError, match="cannot go back from 62 to 50"):
        exact.check_truncate(50)
    assert exact.num_tokens == 62


def test_history_is_kept_where_it_is_asked_for() -> None:
    exact = LooseExactRows(1, 4)
    fed(exact, [WHOLE_STEP + 9, *[1] * RECENT_HISTORY], history=RECENT_HISTORY)
    exact.truncate(exact.num_tokens - RECENT_HISTORY)
    end = exact.num_tokens
    assert slots(fed(exact, [1]).recent)[-4:] == list(range(end - 3, end + 1))


def test_rows_are_selected() -> None:
    exact = LooseExactRows(1, 2)
    fed(exact, [5, 1])
    exact.select(torch.tensor([1, 1, 0]))
    assert exact.batch_size == 3
    recent, sinks = exact.tensors()
    assert recent[:, -1, 0].tolist() == [1005, 1005, 5]
    assert sinks[:, 0, 0].tolist() == [1000, 1000, 0]


def test_memory_does_not_grow_with_the_text() -> None:
    exact = LooseExactRows(2, 8)
    fed(exact, [200, 1])
    held = sum(tensor.untyped_storage().nbytes() for tensor in exact.tensors())
    assert held == 2 * (2 + 8) * WIDTH * 8
