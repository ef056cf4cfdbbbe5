"""Rows: exact byte accounting, small errors, and gains that leave neighbours alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.codecs.gains import LOST, STEPS, UNIT_CODE
from cacheshrink_hybrid.codecs.levels import levels_of
from cacheshrink_hybrid.errors import ConfigError

MIXED = ((16, 16), (32, 8), (8, 4), (16, 2))
LAYOUTS: dict[str, tuple] = {
    "16": (((16, 16),), 32),
    "8": (((16, 8),), 16 + 1),
    "6": (((16, 6),), 12 + 1),
    "5": (((16, 5),), 10 + 1),
    "4": (((16, 4),), 8 + 1),
    "3": (((16, 3),), 6 + 1),
    "2": (((16, 2),), 4 + 1),
    "1": (((16, 1),), 2 + 1),
    "mixed": (MIXED, 32 + 32 + 4 + 4 + 1),
    "uneven": (((5, 6), (7, 5), (9, 3), (3, 4)), 5 + 5 + 5 + 2 + 1),
    "separate": (((16, 8), (16, 1), (16, 8), (16, 4)), 16 + 2 + 16 + 8 + 1),
    "plain-3": (((16, 3),), 6, {"gains": False}),
    "plain-mixed": (((8, 16), (24, 4), (8, 8)), 16 + 12 + 8, {"gains": False}),
    "aligned": (MIXED, 80, {"alignment": 16}),
    "e4m3": (((24, 8),), 24, {"byte": "e4m3"}),
    "e5m2": (((24, 8),), 24, {"byte": "e5m2"}),
    "bf16": (((24, 16), (8, 4)), 48 + 4 + 1, {"half": "bfloat16"}),
}
DISTORTION = {16: 1e-6, 8: 2.5e-4, 6: 9e-4, 5: 3e-3, 4: 0.0105, 3: 0.037, 2: 0.123, 1: 0.38}
"""A little above that of a normal channel, because few channels share a gain."""
FLOAT_DISTORTION = {"e4m3": 8e-4, "e5m2": 3.2e-3, "bf16": 4e-6}

every_layout = pytest.mark.parametrize("name", LAYOUTS)
with_gains = pytest.mark.parametrize("name", [n for n in LAYOUTS if not n.startswith("plain")])


def _codec(name: str) -> RowCodec:
    runs, _, *settings = LAYOUTS[name]
    return RowCodec(runs, RowFormat(**(settings[0] if settings else {})))


def _normal(codec: RowCodec, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, codec.num_channels, generator=generator)


def test_a_row_by_hand() -> None:
    """Of every plane, with last bytes that are not full: codes are given, and levels have them."""
    codec = RowCodec(((1, 16), (3, 3), (2, 6), (2, 8)))
    codes = {3: [7, 0, 5], 6: [0b110101, 0b000010], 8: [200, 3]}
    latent = [torch.tensor([1.5])] + [levels_of(bits)[codes[bits]] * 2 for bits in codes]
    row = codec.encode(torch.cat(latent).float())
    # 0x3E00 is 1.5; 3 bits: 11, 00, 01 and 1, 0, 1; 6 bits: 0101, 0010 and 11, 00.
    due = [0x00, 0x3E, 0b010011, 0b101, 0b00100101, 0b0011, 200, 3, UNIT_CODE + STEPS]
    assert row.tolist() == due
    torch.testing.assert_close(codec.decode(row, torch.float64), torch.cat(latent).double())


@every_layout
def test_row_bytes(name: str) -> None:
    codec = _codec(name)
    rows = codec.encode(_normal(codec, 2, 3))
    assert rows.dtype == torch.uint8
    assert rows.shape == (2, 3, LAYOUTS[name][1]) == (2, 3, codec.row_bytes)


@every_layout
def test_error_by_width(name: str) -> None:
    codec = _codec(name)
    x = _normal(codec, 10_000)
    error = (codec.decode(codec.encode(x), torch.float32) - x).square().mean(0)
    for run in codec.runs:
        floats = FLOAT_DISTORTION.get(name, 0.0) if not run.kind.coded else 0.0
        assert error[run.at_channel].mean() < max(DISTORTION[run.bits], floats)


@pytest.mark.parametrize("name", ["8", "5", "3", "1", "mixed"])
@pytest.mark.parametrize("size", [0.02, 6.0, 250.0])
def test_tokens_of_other_sizes_keep_their_direction(name: str, size: float) -> None:
    codec = _codec(name)
    x = _normal(codec, 200)
    x[::2] *= size
    y = codec.decode(codec.encode(x), torch.float32)
    for run in codec.runs:
        part = (slice(None, None, 2), run.at_channel)
        relative = (y - x)[part].norm(dim=-1) / x[part].norm(dim=-1)
        assert relative.median() < 1.2 * DISTORTION[run.bits] ** 0.5


@every_layout
def test_tokens_leave_their_neighbours_alone(name: str) -> None:
    codec = _codec(name)
    x = _normal(codec, 64)
    alone = codec.encode(x)
    x[7] *= 40
    x[8, 1] = torch.nan
    together = codec.encode(x)
    others = (torch.arange(64) - 7.5).abs() > 1
    assert torch.equal(together[others], alone[others])


@with_gains
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_decode_to_nan(name: str, bad: float) -> None:
    codec = _codec(name)
    x = _normal(codec, 4)
    x[2, 5] = bad
    rows = codec.encode(x)
    y = codec.decode(rows, torch.float32)
    assert torch.isnan(y[2]).all()
    assert torch.isfinite(y[[0, 1, 3]]).all()
    if codec.gain_byte is not None:
        assert rows[2, codec.gain_byte] == LOST


def test_floats_are_clipped_to_their_range() -> None:
    codec = _codec("16")
    y = codec.decode(codec.encode(torch.full((1, 16), 1e6)), torch.float32)
    assert (y == torch.finfo(torch.float16).max).all()


def test_without_gains_levels_clip() -> None:
    codec = _codec("plain-mixed")
    x = _normal(codec, 4)
    x[1, 8:] *= 50
    y = codec.decode(codec.encode(x), torch.float32)
    for run, largest in zip(codec.runs[1:], (2.7326, 4.4824), strict=True):
        assert y[1, run.at_channel].abs().max() == pytest.approx(largest, abs=1e-3)
        assert torch.equal(y[1, run.at_channel].sign(), x[1, run.at_channel].sign())


def test_without_gains_what_is_not_finite_reads_near_zero() -> None:
    codec = _codec("plain-3")
    x = _normal(codec, 3)
    x[1, 4] = torch.nan
    y = codec.decode(codec.encode(x), torch.float32)
    assert y[1].abs().max() < 0.5


@pytest.mark.parametrize("name", ["mixed", "e4m3"])
def test_coding_can_be_traced(name: str) -> None:
    """As one graph, the way accelerators run it; the rows stay the same."""
    codec = _codec(name)
    x = _normal(codec, 4)
    x[1] *= 20
    costs = torch.linspace(1, 0.1, codec.num_channels)
    traced = torch.compile(codec.encode, backend="eager", fullgraph=True)(x, costs)
    assert torch.equal(traced, codec.encode(x, costs))
    decode = torch.compile(codec.decode, backend="eager", fullgraph=True)
    assert torch.equal(decode(traced, torch.float32), codec.decode(traced, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_layout
def test_decoding_rounds_once(name: str, dtype: torch.dtype) -> None:
    codec = _codec(name)
    rows = codec.encode(_normal(codec, 300))
    exact = codec.decode(rows, torch.float32)
    error = (codec.decode(rows, dtype).float() - exact).abs()
    assert (error <= torch.finfo(dtype).eps * exact.abs() + 1e-7).all()


@pytest.mark.parametrize("settings", [{"half": "float8"}, {"byte": "int8"}, {"alignment": 0}])
def test_bad_formats_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RowFormat(**settings)


@pytest.mark.parametrize("runs", [((16, 7),), ((0, 8),)])
def test_bad_runs_are_refused(runs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError, match="run of"):
        RowCodec(runs)
