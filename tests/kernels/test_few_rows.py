"""A few rows times a large matrix: the products of torch, whatever the shape and the threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cacheshrink_hybrid.kernels import few_rows
from cacheshrink_hybrid.kernels.few_rows import MOST_ROWS, few_rows_linear, takes_rows

pytest.importorskip("numba")


def given(shape: tuple[int, ...], num_outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, a matrix and a bias."""
    return torch.randn(shape), torch.randn(num_outputs, shape[-1]), torch.randn(num_outputs)


@pytest.mark.parametrize("shape", [(2, 8), (5, 1, 40), (2, 3, 33), (16, 7), (4, 64)])
@pytest.mark.parametrize("num_outputs", [1, 3, 4, 30, 65])
def test_products_are_those_of_torch(shape: tuple[int, ...], num_outputs: int) -> None:
    """Widths that fill no vector, and matrices of fewer rows than a tile has columns."""
    x, weight, bias = given(shape, num_outputs)
    for added in (None, bias):
        assert takes_rows(x, weight, added)
        found, due = few_rows_linear(x, weight, added), linear(x, weight, added)
        assert found.shape == due.shape
        torch.testing.assert_close(found, due, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_shares_are_the_whole(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every output is written once, also where shares are unequal."""
    x, weight, _ = given((6, 32), 101)
    whole = few_rows_linear(x, weight)
    monkeypatch.setattr("cacheshrink_hybrid.kernels.few_rows.cpu.LEAST_NUMBERS", 100)
    torch.set_num_threads(num_threads)
    torch.testing.assert_close(few_rows_linear(x, weight), whole, rtol=1e-5, atol=1e-4)


def test_rows_that_lie_apart() -> None:
    x, weight, _ = given((4, 32), 12)
    apart = torch.randn(8, 64)[::2, ::2].copy_(x)
    assert takes_rows(apart, weight)
    assert torch.equal(few_rows_linear(apart, weight), few_rows_linear(x, weight))


class Other(Tensor):
    """A tensor that computes in its own way."""


def test_what_is_left_to_torch() -> None:
    x, weight, bias = given((4, 32), 12)
    assert takes_rows(x, nn.Parameter(weight), nn.Parameter(bias))
    left = {
        "one row": (x[:1], weight),
        "many rows": (torch.randn(MOST_ROWS + 1, 32), weight),
        "no rows": (x[:0], weight),
        "a number": (torch.tensor(1.0), weight),
        "another type": (x.double(), weight.double()),
        "two types": (x.half(), weight),
        "a matrix that is turned": (x, torch.randn(32, 12).t()),
        "a vector": (x, weight[0]),
        "another width": (x, weight[:, :16].contiguous()),
        "a bias of another width": (x, weight, bias[:5]),
        "another device": (x.to("meta"), weight.to("meta")),
        "a subclass": (x, weight.as_subclass(Other)),
        "a bias of a subclass": (x, weight, bias.as_subclass(Other)),
        "no tensor": (x, None),
    }
    assert [name for name, arguments in left.items() if takes_rows(*arguments)] == []
    with torch.enable_grad():
        assert not takes_rows(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_rows(x, weight)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def test_cpus_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from cacheshrink_hybrid.kernels.latents.cpu import registers

    for features, due in (
        ({"avx2", "fma"}, True),
        ({"avx2", "fma", "avx512f"}, False),
        ((), False),
    ):
        monkeypatch.setattr(registers, "REGISTERS", registers.registers_of(set(features)))
        assert few_rows.has_few_rows_kernel() is due
