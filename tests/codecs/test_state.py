"""States as rows of bytes: sizes, errors, ranges, classes of heads."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs.names import STATE_CODES
from cacheshrink_hybrid.codecs.state import StateCodec, one_segment
from cacheshrink_hybrid.codecs.state_format import StateSegment
from cacheshrink_hybrid.errors import PlanError

M, P, R = 4, 32, 10
LARGEST_ERROR = {"float32": 0.0, "float16": 3e-4, "bfloat16": 3e-3, "int8": 7e-3, "float8": 4e-2}


def states(scale: float = 1.0) -> torch.Tensor:
    """(3, M, P, R) with channels and heads of very different sizes."""
    torch.manual_seed(1)
    heads = torch.logspace(-2, 2, M)[:, None, None]
    return scale * torch.randn(3, M, P, R) * heads * torch.logspace(0, -2, R)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest over heads and channels of the relative error of their root mean square."""
    error = (actual - expected).square().mean((0, 2))
    return float((error / expected.square().mean((0, 2))).sqrt().max())


@pytest.mark.parametrize("code", STATE_CODES)
def test_error_of_every_channel(code: str) -> None:
    codec = one_segment(M, P, R, code)
    assert relative_error(codec.decode(codec.encode(states())), states()) <= LARGEST_ERROR[code]


@pytest.mark.parametrize("code", STATE_CODES)
def test_rows_have_the_bytes_that_are_counted(code: str) -> None:
    codec = one_segment(M, P, R, code)
    rows = codec.encode(states())
    assert rows.dtype == torch.uint8
    assert rows.shape == (3, codec.row_bytes)
    elements = M * P * R
    scales = {"float32": 0, "bfloat16": 0, "float16": M, "int8": elements // 16, "float8": M * R}
    width = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "float8": 1}
    used = width[code] * elements + scales[code]
    assert codec.row_bytes == -(-used // 16) * 16


@pytest.mark.parametrize("code", ["float16", "int8"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e2])
def test_large_and_small_states_keep_their_precision(code: str, scale: float) -> None:
    """A head beyond float16's range, or far below it, is scaled by itself."""
    codec = one_segment(M, P, R, code)
    decoded = codec.decode(codec.encode(states(scale)))
    assert relative_error(decoded, states(scale)) <= LARGEST_ERROR[code]


def test_float16_of_values_beyond_its_range() -> None:
    codec = one_segment(M, P, R, "float16")
    state = states(1e6)
    assert state.abs().max() > torch.finfo(torch.float16).max
    assert relative_error(codec.decode(codec.encode(state)), state) <= LARGEST_ERROR["float16"]


@pytest.mark.parametrize("code", STATE_CODES)
def test_zeros_stay_zero(code: str) -> None:
    codec = one_segment(M, P, R, code)
    assert torch.count_nonzero(codec.decode(codec.encode(torch.zeros(2, M, P, R)))) == 0


def test_classes_of_heads() -> None:
    codec = StateCodec(
        P,
        (
            StateSegment(heads=(1, 3), rank=R, code="int8"),
            StateSegment(heads=(0,), rank=3, code="float32"),
            StateSegment(heads=(2,), rank=5, code="float16"),
        ),
    )
    state = states()
    state[:, 0, :, 3:] = 0
    state[:, 2, :, 5:] = 0
    decoded = codec.decode(codec.encode(state))
    assert torch.equal(decoded[:, 0], state[:, 0])
    assert torch.count_nonzero(decoded[:, 2, :, 5:]) == 0
    for head, code in ((1, "int8"), (2, "float16"), (3, "int8")):
        rank = 5 if head == 2 else R
        actual, expected = (s[:, head : head + 1, :, :rank] for s in (decoded, state))
        assert 0 < relative_error(actual, expected) <= LARGEST_ERROR[code]


@pytest.mark.parametrize("head_dim", [8, 24, 5])
def test_head_dims_that_16_does_not_divide(head_dim: int) -> None:
    codec = one_segment(M, head_dim, R, "int8")
    state = states()[:, :, :head_dim]
    assert head_dim % codec.block == 0
    assert relative_error(codec.decode(codec.encode(state)), state) <= LARGEST_ERROR["int8"]


def test_coding_twice_changes_nothing() -> None:
    """What was coded is a fixed point, so that a state that rests does not wear out."""
    for code in ("float32", "float16", "bfloat16"):
        codec = one_segment(M, P, R, code)
        once = codec.decode(codec.encode(states()))
        torch.testing.assert_close(codec.decode(codec.encode(once)), once, rtol=0, atol=0)


def test_unknown_code() -> None:
    with pytest.raises(PlanError, match="'int3' is unknown; one of"):
        StateSegment(heads=(0,), rank=1, code="int3")
