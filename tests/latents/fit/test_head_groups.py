"""Latents of groups of heads: block structure, exactness, equal shares, and what they lose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.codecs import RowFormat
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import ConfigError, PlanError
from cacheshrink_hybrid.latents.fit.bits import CodedFactors, code_channels
from cacheshrink_hybrid.latents.fit.factors import KeyShape, LatentFactors, Unit
from cacheshrink_hybrid.latents.fit.kinds import factorize, full_rank_factors
from cacheshrink_hybrid.linalg import projection_loss, whitened_basis
from cacheshrink_hybrid.methods import LATENT_KINDS
from tests.moments import random_unit

J, D, GROUPS = 4, 8, 2
KINDS = [name for name, kind in LATENT_KINDS.items() if kind.groups_heads]
OTHERS = [name for name, kind in LATENT_KINDS.items() if not kind.groups_heads]
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 16)


def _unit(seed: int = 5, apart: bool = False) -> Unit:
    angles = torch.outer(torch.arange(16.0), 0.5 ** torch.arange(D // 2)).double()
    keys = KeyShape(num_heads=J, head_dim=D, rotary_dim=D, block_angles=angles)
    return replace(random_unit(J * D, seed, apart=apart), keys=keys)


def _config(method: str, groups: int = GROUPS, **settings: object) -> CompressionConfig:
    return CompressionConfig(compression_method=method, head_groups=groups, **settings)  # type: ignore[arg-type]


def _full(method: str, groups: int = GROUPS) -> tuple[LatentFactors, Unit]:
    ((factors, unit),) = full_rank_factors([_unit()], _config(method, groups))
    return factors, unit


def _coded(method: str, budget: float, widths: Sequence[int] = WIDTHS) -> CodedFactors:
    factors, unit = _full(method)
    (coded,) = code_channels([factors], [unit], [None], widths, budget, formats=[RowFormat()])
    return coded


@pytest.mark.parametrize("method", KINDS)
def test_channels_are_made_of_their_own_group_and_reach_no_other(method: str) -> None:
    factors, _ = _full(method)
    assert factors.channel_groups is not None
    groups_of_elements = torch.arange(2 * J * D) % (J * D) // (J // GROUPS * D)
    belongs = groups_of_elements[:, None] == factors.channel_groups
    for matrix in (factors.up, factors.encoder.T):
        assert not matrix[~belongs].any()
        assert matrix.abs().sum(0).all()


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("method", KINDS)
def test_full_rank_is_exact(method: str, groups: int) -> None:
    factors, _ = _full(method, groups)
    product = factors.up @ factors.encoder
    torch.testing.assert_close(product, torch.eye(2 * J * D).double(), atol=1e-6, rtol=0)


def test_one_group_has_the_bases_of_all_heads() -> None:
    factors, _ = _full("joint", 1)
    assert factors.channel_groups is None
    assert factors.up.abs().min(dim=0).values.any()


@pytest.mark.parametrize("method", ["joint", "separate"])
def test_ranks_are_equal_in_all_groups_and_lose_the_rest_of_their_spectra(method: str) -> None:
    """Where the metric knows of no other group, errors of the groups add up."""
    unit = _unit()
    places = torch.arange(2 * J * D).view(2, GROUPS, -1).transpose(0, 1).flatten(1)
    blocks = torch.zeros_like(unit.metric)
    for own in places:
        blocks[own[:, None], own] = unit.metric[own[:, None], own]
    unit = replace(unit, metric=blocks, covariance=unit.covariance)
    budget = 2 * J * D  # half of the channels, at two bytes each
    (factors,) = factorize([unit], _config(method, cache_bits=16), budget)
    assert factors.channel_groups is not None
    shares = torch.bincount(factors.channel_groups)
    assert shares[0] == shares[1] and 2 * int(shares.sum()) == budget
    due, kept = 0.0, int(shares[0])
    for own in places:
        parts = [own] if method == "joint" else list(own.chunk(2))
        if method == "joint":
            ranks = [kept]
        else:
            ranks = [factors.key_rank // GROUPS, factors.value_up.shape[1] // GROUPS]
        for part, rank in zip(parts, ranks, strict=True):
            index = part[:, None], part
            basis = whitened_basis(unit.covariance[index], unit.metric[index])
            due += float(basis.spectrum[rank:].sum())
    if method == "joint":  # errors of keys and values apart meet in the metric
        assert factors.loss == pytest.approx(due, rel=1e-6)
    again = projection_loss(factors.up, factors.encoder, unit.covariance, unit.metric)
    assert factors.loss == pytest.approx(again)


@pytest.mark.parametrize("widths", [WIDTHS, (8,), (16,)])
@pytest.mark.parametrize("method", KINDS)
def test_runs_hold_one_group_after_the_other(method: str, widths: tuple[int, ...]) -> None:
    coded = _coded(method, 40.0, widths)
    groups = coded.factors.channel_groups
    assert groups is not None
    start = 0
    for channels, _ in coded.runs:
        share = channels // GROUPS
        found = groups[start : start + channels].tolist()
        assert found == [g for g in range(GROUPS) for _ in range(share)]
        start += channels
    assert coded.factors.key_rank % GROUPS == coded.factors.value_up.shape[1] % GROUPS == 0


@pytest.mark.parametrize("alignment", [1, 16])
def test_the_budget_is_of_rows_in_parts(alignment: int) -> None:
    """Every part has a gain and padding of its own."""
    factors, unit = _full("joint")
    formats = [RowFormat(alignment=alignment)]
    (coded,) = code_channels([factors], [unit], [None], WIDTHS, 64.0, formats=formats)
    parts = coded.row_format.row_bytes(coded.runs, GROUPS)
    own = [(channels // GROUPS, bits) for channels, bits in coded.runs]
    assert parts == GROUPS * coded.row_format.row_bytes(own)
    assert 56 <= parts <= 64


def test_hadamard_mixes_no_groups() -> None:
    factors, unit = _full("joint")
    options = {"formats": [RowFormat()], "hadamard": True}
    (coded,) = code_channels([factors], [unit], [None], (4,), 24.0, **options)  # type: ignore[arg-type]
    groups = coded.factors.channel_groups
    assert groups is not None
    elements = torch.arange(2 * J * D) % (J * D) // (J // GROUPS * D)
    other = elements[:, None] != groups
    assert not coded.factors.up[other].any() and not coded.factors.encoder.T[other].any()


def test_heads_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(
        PlanError, match=r"head_groups=3 does not divide the 4 key heads .* 1, 2, 4"
    ):
        _full("joint", 3)
    with pytest.raises(PlanError, match="need the number of heads"):
        full_rank_factors([random_unit(J * D, 0)], _config("joint"))


@pytest.mark.parametrize("method", OTHERS)
def test_kinds_of_all_heads_are_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=f"head_groups=2 .*{method}.* give another method"):
        _config(method)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_groups": 0}, "head_groups=0"),
        ({"head_groups": 2.0}, "head_groups=2.0"),
        (
            {"head_groups": 2, "d_latent": 8, "compression_method": "joint"},
            "d_latent=8 counts channels of all heads",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CompressionConfig(**settings)
