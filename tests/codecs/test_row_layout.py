"""Layouts: runs back to back, their planes in them, then the gain, then padding; and parts."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.codecs.row_layout import Kind, Plane, RowLayout, Run
from cacheshrink_hybrid.errors import ConfigError


def test_runs_lie_back_to_back_in_the_kinds_of_their_format() -> None:
    layout = RowFormat(half="bfloat16", byte="e5m2").layout([(3, 16), (2, 8), (6, 4), (9, 3)])
    assert layout.runs == (
        Run(Kind.BFLOAT16, 0, 3, (Plane(16, 0, 6),)),
        Run(Kind.E5M2, 3, 2, (Plane(8, 6, 2),)),
        Run(Kind.LEVELS4, 5, 6, (Plane(4, 8, 3),)),
        Run(Kind.LEVELS3, 11, 9, (Plane(2, 11, 3), Plane(1, 14, 2))),
    )
    assert layout.num_channels == 20
    assert (layout.after_runs, layout.gain_byte, layout.row_bytes) == (16, 16, 17)
    assert layout.uses_tables and layout.wide


@pytest.mark.parametrize(
    ("bits", "planes"),
    [
        (6, [(4, 0, 6), (2, 6, 3)]),
        (5, [(4, 0, 6), (1, 6, 2)]),
        (3, [(2, 0, 3), (1, 3, 2)]),
        (2, [(2, 0, 3)]),
        (1, [(1, 0, 2)]),
    ],
)
def test_planes_of_every_width(bits: int, planes: list[tuple[int, int, int]]) -> None:
    """Of 11 channels: a last byte is there where it is not full."""
    (run,) = RowFormat().layout([(11, bits)]).runs
    assert run.planes == tuple(Plane(*plane) for plane in planes)
    assert run.num_bytes == sum(plane.num_bytes for plane in run.planes)


def test_gains_are_for_coded_channels() -> None:
    padded = RowFormat(alignment=16)
    assert padded.layout([(2, 16), (4, 8)]).gain_byte == 8
    assert padded.layout([(2, 16), (4, 8)]).row_bytes == 16
    assert padded.layout([(8, 16)]).gain_byte is None
    assert padded.layout([(8, 16)]).row_bytes == 16
    assert RowFormat(byte="e4m3").layout([(8, 8)]).gain_byte is None
    plain = RowFormat(gains=False).layout([(2, 16), (4, 8)])
    assert plain.gain_byte is None
    assert plain.row_bytes == plain.after_gain == plain.after_runs == 8


def test_parts_of_a_layout() -> None:
    layout = RowLayout.of_runs([(8, Kind.UNIFORM8), (32, Kind.LEVELS5)])
    assert layout.between(6, 20) == (
        Run(Kind.UNIFORM8, 6, 2, (Plane(8, 6, 2),)),
        Run(Kind.LEVELS5, 8, 12, (Plane(4, 8, 6), Plane(1, 24, 2))),
    )
    (part,) = layout.between(16, 40)
    assert part.planes == (Plane(4, 12, 12), Plane(1, 25, 3))
    with pytest.raises(ConfigError, match="of LEVELS5; cut runs at multiples of 8 channels"):
        layout.between(12, 24)


def test_kinds_of_numbers_that_are_stored_as_they_are() -> None:
    for kind in Kind:
        if not kind.coded:
            assert kind.dtype.itemsize * 8 == kind.bits
            assert Kind.of(kind.dtype) is kind
    assert Kind.of(torch.float64) is None


def test_a_row_has_runs() -> None:
    with pytest.raises(ConfigError, match="a row has no runs"):
        RowFormat().layout([])
