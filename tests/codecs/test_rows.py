"""Rows: exact byte accounting, small errors, stable codes, and escapes that ordinary tokens
do not pay for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.codecs.levels import HEAD_GAINS, UNIFORM_CLIP
from cacheshrink_hybrid.errors import ConfigError

MIXED = ((16, 16), (32, 8), (8, 4), (16, 2))
LAYOUTS: dict[str, tuple] = {
    "16": (((16, 16),), 32),
    "8": (((16, 8),), 16),
    "4": (((16, 4),), 8 + 1),
    "2": (((16, 2),), 4 + 1),
    "mixed": (((16, 16), (32, 8), (8, 4), (16, 2)), 32 + 32 + 4 + 4),
    "no-8": (((8, 16), (24, 4), (8, 2)), 16 + 12 + 2 + 1),
    "separate": (((16, 8), (16, 2), (16, 8), (16, 4)), 16 + 4 + 16 + 8),
    "plain-2": (((16, 2),), 4, {"gains": False}),
    "plain-no-8": (((8, 16), (24, 4), (8, 2)), 16 + 12 + 2, {"gains": False}),
    "plain-8": (((16, 8), (16, 4)), 16 + 8, {"gains": False}),
    "aligned": (MIXED, 80, {"alignment": 16}),
    "token": (MIXED, 32 + 32 + 4 + 4 + 3 * 2, {"scales": "token"}),
    "token-4": (((16, 4),), 8 + 2, {"scales": "token"}),
    "e4m3": (((24, 8),), 24, {"byte": "e4m3"}),
    "e5m2": (((24, 8),), 24, {"byte": "e5m2"}),
    "bf16": (((24, 16),), 48, {"half": "bfloat16"}),
}
DISTORTION = {16: 1e-6, 8: 2.5e-4, 4: 0.0100, 2: 0.123}
OWN_DISTORTION = {"e4m3": 8e-4, "e5m2": 3.2e-3, "bf16": 4e-6, "token": 0.3, "token-4": 0.02}
"""Of layouts whose numbers are coarser, or whose scales fit the largest channel, not the usual."""

every_layout = pytest.mark.parametrize("name", LAYOUTS)
escaping = pytest.mark.parametrize("name", [n for n in LAYOUTS if not n.startswith("plain")])


def _codec(name: str) -> RowCodec:
    runs, _, *settings = LAYOUTS[name]
    return RowCodec(runs, RowFormat(**(settings[0] if settings else {})))


def _normal(codec: RowCodec, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, codec.num_channels, generator=generator).clamp(-4.4, 4.4)


@every_layout
def test_row_bytes(name: str) -> None:
    codec = _codec(name)
    rows = codec.encode(_normal(codec, 2, 3))
    assert rows.dtype == torch.uint8
    assert rows.shape == (2, 3, LAYOUTS[name][1]) == (2, 3, codec.row_bytes)


@every_layout
def test_error_by_width(name: str) -> None:
    codec = _codec(name)
    x = _normal(codec, 20_000)
    error = (codec.decode(codec.encode(x), torch.float32) - x).square().mean(0)
    for run in codec.runs:
        assert error[run.at_channel].mean() < OWN_DISTORTION.get(name, DISTORTION[run.bits])


@every_layout
def test_a_decoded_row_is_coded_to_itself(name: str) -> None:
    codec = _codec(name)
    rows = codec.encode(_normal(codec, 5_000))
    assert torch.equal(codec.encode(codec.decode(rows, torch.float32)), rows)


@escaping
@pytest.mark.parametrize("size", [6.0, 30.0, 250.0])
def test_outlier_tokens_keep_their_direction(name: str, size: float) -> None:
    codec = _codec(name)
    x = _normal(codec, 200)
    x[::2] *= size / x[::2].abs().amax(-1, keepdim=True)
    y = codec.decode(codec.encode(x), torch.float32)
    for run in codec.runs:
        part = (slice(None, None, 2), run.at_channel)
        relative = (y - x)[part].norm(dim=-1) / x[part].norm(dim=-1)
        floats = 0.08 if codec.format.byte != "uniform" else 0.01
        limits = {16: 0.01, 8: max(0.08, floats), 4: 0.3, 2: 1.2}
        assert relative.median() < limits[run.bits]


@every_layout
def test_outlier_tokens_leave_their_neighbours_alone(name: str) -> None:
    codec = _codec(name)
    x = _normal(codec, 64)
    alone = codec.encode(x)
    x[7] *= 40
    together = codec.encode(x)
    others = torch.arange(64) != 7
    assert torch.equal(together[others], alone[others])


def test_reach_decides_which_channels_escape_a_token() -> None:
    codec = _codec("8")
    x = torch.zeros(1, 16)
    x[0, 3], x[0, 5] = 20.0, 0.5
    tolerant = torch.full((16,), UNIFORM_CLIP)
    tolerant[3] = 1e6
    escaped = codec.decode(codec.encode(x), torch.float32)[0]
    clipped = codec.decode(codec.encode(x, tolerant), torch.float32)[0]
    assert escaped[3] == pytest.approx(20.0, rel=0.05)
    assert clipped[3] == pytest.approx(UNIFORM_CLIP, rel=0.01)
    assert abs(clipped[5] - 0.5) < abs(escaped[5] - 0.5)


def test_saturation_is_counted() -> None:
    codec = _codec("mixed")
    x = _normal(codec, 4)
    assert codec.saturated(x) == 0
    x[1, 20] = 2.0**HEAD_GAINS * UNIFORM_CLIP * 1.01
    x[2, 0] = 1e6
    assert codec.saturated(x) == 2
    assert torch.isfinite(codec.decode(codec.encode(x), torch.float32)).all()


@escaping
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_decode_to_nan(name: str, bad: float) -> None:
    codec = _codec(name)
    x = _normal(codec, 4)
    x[2, 5] = bad
    y = codec.decode(codec.encode(x), torch.float32)
    assert torch.isnan(y[2]).all()
    assert torch.isfinite(y[[0, 1, 3]]).all()


def test_without_gains_levels_clip() -> None:
    codec = _codec("plain-no-8")
    x = _normal(codec, 4)
    x[1, 8:] *= 50
    y = codec.decode(codec.encode(x, torch.ones(40)), torch.float32)  # no reach matters here
    for run, largest in zip(codec.runs[1:], (2.733, 1.510), strict=True):
        clipped = x[1, run.at_channel].abs() > largest
        assert y[1, run.at_channel].abs().max() == pytest.approx(largest, abs=1e-3)
        assert torch.equal(y[1, run.at_channel].sign(), x[1, run.at_channel].sign())
        assert clipped.any()
    assert not codec.escaped(codec.encode(x)).any()
    assert codec.saturated(x) == int((x[:, 8:].abs() > UNIFORM_CLIP).sum()) > 0


def test_scales_per_token_have_no_gains_to_leave_out() -> None:
    with pytest.raises(ConfigError, match="gains=False is for static scales"):
        RowFormat(scales="token", gains=False)


def test_without_gains_what_is_not_finite_reads_near_zero() -> None:
    codec = _codec("plain-2")
    x = _normal(codec, 3)
    x[1, 4] = torch.nan
    y = codec.decode(codec.encode(x), torch.float32)
    assert y[1].abs().max() < 0.5
    assert torch.equal(codec.encode(x)[[0, 2]], codec.encode(x[[0, 2]]))


def test_escaped_tokens_are_told() -> None:
    codec = _codec("mixed")
    x = _normal(codec, 3)
    x[1] *= 40
    assert codec.escaped(codec.encode(x)).tolist() == [False, True, False]
    assert not _codec("token").escaped(_codec("token").encode(x)).any()


@pytest.mark.parametrize("name", ["mixed", "bf16", "e4m3"])
def test_coding_can_be_traced(name: str) -> None:
    """As one graph, the way accelerators run it; the rows stay the same."""
    codec = _codec(name)
    x = _normal(codec, 4)
    x[1] *= 20
    traced = torch.compile(codec.encode, backend="eager", fullgraph=True)(x)
    assert torch.equal(traced, codec.encode(x))
    decode = torch.compile(codec.decode, backend="eager", fullgraph=True)
    assert torch.equal(decode(traced, torch.float32), codec.decode(traced, torch.float32))


def test_neighbours_share_a_byte() -> None:
    codec = _codec("4")
    x = torch.zeros(1, 16)
    before = codec.encode(x)[0, :8]
    x[0, 5] = 3.0  # the high half of byte 2
    changed = codec.encode(x)[0, :8]
    assert (changed != before).nonzero().flatten().tolist() == [2]
    assert changed[2] & 15 == before[2] & 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_layout
def test_decoding_rounds_once(name: str, dtype: torch.dtype) -> None:
    codec = _codec(name)
    rows = codec.encode(_normal(codec, 300))
    exact = codec.decode(rows, torch.float32)
    error = (codec.decode(rows, dtype).float() - exact).abs()
    assert (error <= torch.finfo(dtype).eps * exact.abs() + 1e-7).all()


@pytest.mark.parametrize(
    "settings", [{"scales": "row"}, {"half": "float8"}, {"byte": "int8"}, {"alignment": 0}]
)
def test_bad_formats_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RowFormat(**settings)


@pytest.mark.parametrize("runs", [((16, 3),), ((3, 4),), ((0, 8),)])
def test_bad_runs_are_refused(runs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ConfigError):
        RowCodec(runs)
