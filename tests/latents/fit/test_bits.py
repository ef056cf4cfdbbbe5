"""Bit allocation: within the budget, better than any single width, and predicting its own loss."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.codecs import RowCodec, RowFormat
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import PlanError
from cacheshrink_hybrid.latents.fit.bits import CodedFactors, code_channels
from cacheshrink_hybrid.latents.fit.factors import Unit
from cacheshrink_hybrid.latents.fit.kinds import full_rank_factors
from cacheshrink_hybrid.methods import WIDTHS_OF

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
) -> list[CodedFactors]:
    config = CompressionConfig(compression_method=method, cache_bits="auto")
    factors = [factor for factor, _ in full_rank_factors(units, config)]
    return code_channels(
        factors,
        units,
        [None] * len(units),
        widths,
        budget,
        formats=[RowFormat(**format)] * len(units),
        hadamard=hadamard,
    )


def _codec(result: CodedFactors) -> RowCodec:
    return RowCodec(result.runs, result.row_format)


def _sampled(outliers: bool, **format):
    """Results for one module whose samples have tokens that are far out, or none."""
    unit = _units(1)[0]
    ((factor, _),) = full_rank_factors([unit], CompressionConfig(cache_bits="auto"))
    root = torch.linalg.cholesky(unit.covariance)
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(4_000, 2 * WIDTH, generator=generator, dtype=torch.float64) @ root.T
    if outliers:
        y[::20] *= 30
    formats = [RowFormat(**format)]
    return code_channels([factor], [unit], [y], WIDTHS_OF["auto"], 9, formats=formats)[0]


def test_narrow_rows_lose_gains_that_no_token_needs() -> None:
    plain = _sampled(outliers=False)
    assert not plain.row_format.gains
    assert plain.row_format.row_bytes(plain.runs) == 9
    assert _sampled(outliers=True).row_format.gains
    assert _sampled(outliers=False, alignment=3).row_format.gains


def test_a_row_without_gains_loses_less() -> None:
    without = _sampled(outliers=False)
    padded = _sampled(outliers=False, alignment=3)  # keeps its gains, in as many bytes
    assert padded.row_format.row_bytes(padded.runs) == 9
    assert without.factors.loss < padded.factors.loss


@pytest.mark.parametrize("format", [{}, {"alignment": 16}], ids=str)
@pytest.mark.parametrize("method", ["joint", "separate"])
@pytest.mark.parametrize("budget", [60, 100, 200, 350])
def test_budget_is_used_but_not_passed(method: str, budget: int, format: dict) -> None:
    results = _coded(_units(), WIDTHS_OF["auto"], budget, method, **format)
    spent = sum(_codec(result).row_bytes for result in results)
    largest_step = 8  # a run of 8 channels from 8 to 16 bits
    assert budget - max(largest_step, format.get("alignment", 1)) <= spent <= budget


def test_padding_is_filled_with_bits() -> None:
    for result in _coded(_units(), WIDTHS_OF["auto"], 200, alignment=16):
        assert (
            _codec(result).row_bytes - RowCodec(result.runs).row_bytes < 2
        )  # less than a step from 2 to 4 bits


def test_hadamard_keeps_the_loss_of_what_is_dropped() -> None:
    plain = _coded(_units(1), (4,), 20)[0]
    mixed = _coded(_units(1), (4,), 20, hadamard=True)[0]
    assert plain.runs == mixed.runs
    product = plain.factors.up @ plain.factors.encoder
    torch.testing.assert_close(mixed.factors.up @ mixed.factors.encoder, product)
    assert not torch.allclose(mixed.factors.encoder, plain.factors.encoder)


@pytest.mark.parametrize("method", ["joint", "separate"])
def test_shapes_agree(method: str) -> None:
    for result in _coded(_units(), WIDTHS_OF["auto"], 120, method):
        factors, rank = result.factors, sum(channels for channels, _ in result.runs)
        assert factors.encoder.shape == (rank, 2 * WIDTH)
        assert factors.up.shape == (2 * WIDTH, rank)
        assert factors.costs is not None and factors.costs.shape == (rank,)
        if method == "joint":
            assert factors.key_up.shape[1] == factors.value_up.shape[1] == rank
        else:
            assert factors.key_up.shape[1] + factors.value_up.shape[1] == rank


def test_loss_falls_with_the_budget() -> None:
    units = _units()
    losses = [
        sum(r.factors.loss for r in _coded(units, WIDTHS_OF["auto"], budget))
        for budget in (60, 80, 120, 180, 300)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_mixed_widths_beat_one_width(bits: int) -> None:
    units = _units()
    one = sum(r.factors.loss for r in _coded(units, (bits,), 120))
    mixed = sum(r.factors.loss for r in _coded(units, WIDTHS_OF["auto"], 120))
    assert mixed < one


def test_measured_loss_is_the_predicted_one() -> None:
    units = _units()
    generator = torch.Generator().manual_seed(5)
    for result, unit in zip(_coded(units, WIDTHS_OF["auto"], 150), units, strict=True):
        factors, codec = result.factors, _codec(result)
        root = torch.linalg.cholesky(unit.covariance)
        y = torch.randn(40_000, 2 * WIDTH, generator=generator, dtype=torch.float64) @ root.T
        rows = codec.encode((y @ factors.encoder.T).float(), factors.costs)
        error = codec.decode(rows, torch.float64) @ factors.up.T - y
        measured = torch.einsum("tn,nm,tm->t", error, unit.metric, error).mean()
        assert factors.loss == pytest.approx(float(measured), rel=0.1)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(PlanError, match="lower compression_ratio"):
        _coded(_units(), WIDTHS_OF["auto"], 5)


def test_same_input_same_plan() -> None:
    first, second = (_coded(_units(), WIDTHS_OF["auto"], 120) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a.runs, a.row_format) == (b.runs, b.row_format)
        assert torch.equal(a.factors.encoder, b.factors.encoder)


def test_widths_are_chosen_with_the_gains_in_place() -> None:
    """Tokens that are larger throughout ask for wider runs where nothing scales them."""
    unit = _units(1)[0]
    ((factor, _),) = full_rank_factors([unit], CompressionConfig(cache_bits="auto"))
    root = torch.linalg.cholesky(unit.covariance)
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(4_000, 2 * WIDTH, generator=generator, dtype=torch.float64) @ root.T
    spread = torch.exp2(2 * torch.randn(4_000, 1, generator=generator, dtype=torch.float64))
    y = y * spread / spread.square().mean().sqrt()

    def coded(format: RowFormat, budget: int) -> CodedFactors:
        samples, widths = [y], WIDTHS_OF["auto"]
        return code_channels([factor], [unit], samples, widths, budget, formats=[format])[0]

    with_gains = coded(RowFormat(alignment=2), 20)
    without = coded(RowFormat(alignment=2, gains=False), 20)
    assert with_gains.row_format.gains and not without.row_format.gains
    assert with_gains.factors.loss < 0.7 * without.factors.loss


def test_a_row_has_one_run_of_each_width() -> None:
    for method, parts in (("joint", 1), ("separate", 2)):
        for result in _coded(_units(), WIDTHS_OF["auto"], 120, method):
            widths = [bits for _, bits in result.runs]
            assert len(widths) <= parts * len(set(widths))
            if parts == 1:
                assert widths == sorted(set(widths), reverse=True)
