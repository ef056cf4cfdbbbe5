"""Layouts: runs back to back, then what scales them, then padding; and parts of them."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, RowLayout, Run
from cacheshrink_hybrid.errors import ConfigError


def test_runs_lie_back_to_back_in_the_kinds_of_their_format() -> None:
    layout = RowFormat(half="bfloat16", byte="e5m2").layout([(3, 16), (2, 8), (4, 4), (8, 2)])
    assert layout.runs == (
        Run(Kind.BFLOAT16, 0, 3, 0),
        Run(Kind.E5M2, 3, 2, 6),
        Run(Kind.LEVELS4, 5, 4, 8),
        Run(Kind.LEVELS2, 9, 8, 10),
    )
    assert layout.num_channels == 17
    assert layout.uses_tables and layout.wide


@pytest.mark.parametrize(
    ("runs", "head", "end"),
    [
        ([(2, 16), (4, 8), (4, 8)], (4, 2), 12),  # in the first 8-bit run
        ([(2, 16), (4, 4)], (6, None), 7),  # or behind all runs
        ([(2, 16)], (None, None), 4),  # or nowhere
    ],
)
def test_head_byte(runs: list[tuple[int, int]], head: tuple, end: int) -> None:
    layout = RowFormat(alignment=16).layout(runs)
    assert (layout.head_byte, layout.head_channel) == head
    assert (layout.after_scales, layout.row_bytes) == (end, 16)
    plain = RowFormat(gains=False).layout(runs)
    assert plain.head_byte is None
    assert plain.row_bytes == plain.after_runs


def test_scales_per_token_lie_behind_the_runs() -> None:
    layout = RowFormat(scales="token").layout([(4, 4), (2, 16), (4, 8), (8, 4)])
    assert layout.head_byte is None
    assert layout.scaled_widths == (8, 4)
    assert (layout.after_runs, layout.after_scales) == (14, 18)


def test_parts_of_a_layout() -> None:
    layout = RowLayout.of_runs([(8, Kind.UNIFORM8), (8, Kind.LEVELS4)])
    assert layout.between(6, 12) == (Run(Kind.UNIFORM8, 6, 2, 6), Run(Kind.LEVELS4, 8, 4, 8))
    with pytest.raises(ConfigError, match="within a byte of a run of LEVELS4"):
        layout.between(6, 11)


def test_kinds_of_numbers_that_are_stored_as_they_are() -> None:
    for kind in Kind:
        if not kind.coded:
            assert kind.dtype.itemsize * 8 == kind.bits
            assert Kind.of(kind.dtype) is kind
    assert Kind.of(torch.float64) is None


def test_a_row_has_runs() -> None:
    with pytest.raises(ConfigError, match="a row has no runs"):
        RowFormat().layout([])
