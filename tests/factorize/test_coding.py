"""Bit allocation: within the budget, better than any single width, and predicting its own loss."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.config import WIDTHS_OF, CompressionConfig
from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.factorize import Unit, code_channels, full_rank_factors
from cacheshrink_hybrid.factorize.coding import channel_costs, channel_variances

WIDTH = 32  # J * D


def _units(num: int = 3, seed: int = 0) -> list[Unit]:
    generator = torch.Generator().manual_seed(seed)

    def spd(power: float) -> torch.Tensor:
        n = 2 * WIDTH
        q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
        return (q * torch.logspace(0, -power, n, dtype=torch.float64)) @ q.T

    return [
        Unit(
            covariance=spd(3), metric=spd(1 + i), mean=torch.zeros(2 * WIDTH).double(), num_layers=1
        )
        for i in range(num)
    ]


def _coded(
    units: list[Unit],
    widths: tuple[int, ...],
    budget: float,
    method: str = "joint",
    hadamard: bool = False,
    **format,
):
    config = CompressionConfig(compression_method=method, cache_bits="auto")
    factors = full_rank_factors(units, config)
    results = code_channels(
        factors,
        units,
        [None] * len(units),
        widths,
        budget,
        formats=[RowFormat(**format)] * len(units),
        hadamard=hadamard,
    )
    return [(result.factors, result.runs) for result in results]


@pytest.mark.parametrize("format", [{}, {"scales": "token"}, {"alignment": 16}], ids=str)
@pytest.mark.parametrize("method", ["joint", "separate"])
@pytest.mark.parametrize("budget", [60, 100, 200, 350])
def test_budget_is_used_but_not_passed(method: str, budget: int, format: dict) -> None:
    results = _coded(_units(), WIDTHS_OF["auto"], budget, method, **format)
    spent = sum(RowCodec(runs, RowFormat(**format)).row_bytes for _, runs in results)
    largest_step = 8  # a run of 8 channels from 8 to 16 bits
    assert budget - max(largest_step, format.get("alignment", 1)) <= spent <= budget


def test_padding_is_filled_with_bits() -> None:
    for _, runs in _coded(_units(), WIDTHS_OF["auto"], 200, alignment=16):
        bare, padded = RowCodec(runs).row_bytes, RowCodec(runs, RowFormat(alignment=16)).row_bytes
        assert padded - bare < 2  # less than a step from 2 to 4 bits


def test_hadamard_keeps_the_loss_of_what_is_dropped() -> None:
    plain = _coded(_units(1), (4,), 20)[0]
    mixed = _coded(_units(1), (4,), 20, hadamard=True)[0]
    assert plain[1] == mixed[1]
    product = plain[0].up @ plain[0].encoder
    torch.testing.assert_close(mixed[0].up @ mixed[0].encoder, product)
    assert not torch.allclose(mixed[0].encoder, plain[0].encoder)


@pytest.mark.parametrize("method", ["joint", "separate"])
def test_shapes_agree(method: str) -> None:
    for factors, runs in _coded(_units(), WIDTHS_OF["auto"], 120, method):
        rank = sum(channels for channels, _ in runs)
        assert factors.encoder.shape == (rank, 2 * WIDTH)
        assert factors.up.shape == (2 * WIDTH, rank)
        assert factors.reach is not None and factors.reach.shape == (rank,)
        if method == "joint":
            assert factors.key_up.shape[1] == factors.value_up.shape[1] == rank
        else:
            assert factors.key_up.shape[1] + factors.value_up.shape[1] == rank


def test_loss_falls_with_the_budget() -> None:
    units = _units()
    losses = [
        sum(f.loss for f, _ in _coded(units, WIDTHS_OF["auto"], budget))
        for budget in (60, 80, 120, 180, 300)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_mixed_widths_beat_one_width(bits: int) -> None:
    units = _units()
    one = sum(f.loss for f, _ in _coded(units, (bits,), 120))
    mixed = sum(f.loss for f, _ in _coded(units, WIDTHS_OF["auto"], 120))
    assert mixed < one


def test_measured_loss_is_the_predicted_one() -> None:
    units = _units()
    generator = torch.Generator().manual_seed(5)
    for (factors, runs), unit in zip(_coded(units, WIDTHS_OF["auto"], 150), units, strict=True):
        root = torch.linalg.cholesky(unit.covariance)
        y = torch.randn(40_000, 2 * WIDTH, generator=generator, dtype=torch.float64) @ root.T
        codec = RowCodec(runs)
        rows = codec.encode((y @ factors.encoder.T).float(), factors.reach)
        error = codec.decode(rows, torch.float64) @ factors.up.T - y
        measured = torch.einsum("tn,nm,tm->t", error, unit.metric, error).mean()
        assert factors.loss == pytest.approx(float(measured), rel=0.1)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(PlanError, match="lower compression_ratio"):
        _coded(_units(), WIDTHS_OF["auto"], 5)


def test_same_input_same_plan() -> None:
    first, second = (_coded(_units(), WIDTHS_OF["auto"], 120) for _ in range(2))
    for (a, runs_a), (b, runs_b) in zip(first, second, strict=True):
        assert runs_a == runs_b
        assert torch.equal(a.encoder, b.encoder)


@pytest.mark.parametrize("method", ["joint", "separate"])
def test_the_gain_shares_its_byte_with_the_channel_worth_least(method: str) -> None:
    units = _units(1)
    for factors, runs in _coded(units, WIDTHS_OF["auto"], 60, method):
        codec = RowCodec(runs)
        assert codec.head_channel is not None
        run = next(run for run in codec.runs if run.bits == 8)
        costs = channel_costs(factors, units[0]) * channel_variances(factors, units[0])
        assert costs[codec.head_channel] == costs[run.at_channel].min()
