"""Splits of keys that ours is compared with: what they keep, and at full width all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.latents.fit.factors import KeyShape, LatentFactors, Unit
from scripts.mla_splits import mha2mla, transmla
from tests.moments import random_unit

J, D = 3, 8
WIDTH, F = J * D, D // 2


def _unit(num_heads: int = J) -> Unit:
    keys = KeyShape(num_heads=num_heads, head_dim=D, rotary_dim=D)
    return replace(random_unit(num_heads * D, 3), keys=keys)


def _weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * WIDTH, 40, generator=generator).double()


def _queries(best: dict[int, int]) -> Tensor:
    """Squares of queries (J, F) of which one frequency of each head stands out."""
    squares = torch.full((J, F), 1e-6).double()
    for head, frequency in best.items():
        squares[head, frequency] = 1e6
    return squares


def _product(factors: LatentFactors) -> Tensor:
    return factors.up @ factors.encoder


def _rotary(factors: LatentFactors) -> Tensor:
    width = 2 * len(factors.rotary_frequencies)
    keys = factors.encoder.shape[1] // 2
    return factors.encoder[:width, :keys]


def test_transmla_of_one_head_rotates_all_of_it() -> None:
    factors = transmla(_unit(1), fold=1, rank=D)
    assert factors.rotary_frequencies == (0, 1, 2, 3)
    torch.testing.assert_close(_product(factors), torch.eye(2 * D).double())
    torch.testing.assert_close(factors.key_up[:, :D] @ _rotary(factors), torch.eye(D).double())


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_transmla_rotates_the_largest_component_of_neighbouring_frequencies(fold: int) -> None:
    unit = _unit()
    width = 2 * F // fold
    factors = transmla(unit, fold=fold, rank=2 * WIDTH - width)
    assert factors.rotary_frequencies == tuple(range(0, F, fold))
    rotary = _rotary(factors)
    torch.testing.assert_close(rotary @ rotary.T, torch.eye(width).double())
    torch.testing.assert_close(_product(factors), torch.eye(2 * WIDTH).double())
    moment = unit.covariance + torch.outer(unit.mean, unit.mean)
    kept = rotary @ moment[:WIDTH, :WIDTH] @ rotary.T
    channels = torch.arange(WIDTH).view(J, 2, F)
    both = sum(moment[part][:, part] for part in channels[:, :, :fold].transpose(0, 1).flatten(1))
    largest = torch.linalg.eigvalsh(both)[-1]
    first, second = kept[0, 0], kept[width // 2, width // 2]
    torch.testing.assert_close(first + second, largest)


def test_mha2mla_at_full_width_is_exact() -> None:
    factors = mha2mla(_unit(), _weight(), _queries({}), head_width=D, rank=WIDTH)
    torch.testing.assert_close(_product(factors), torch.eye(2 * WIDTH).double())
    turning = factors.key_up[:, :WIDTH] @ _rotary(factors)
    torch.testing.assert_close(turning, torch.eye(WIDTH).double())


def test_mha2mla_keeps_what_queries_and_keys_are_longest_in() -> None:
    factors = mha2mla(_unit(), _weight(), _queries({0: 3, 1: 0, 2: 2}), head_width=2, rank=10)
    assert factors.rotary_frequencies == (0, 2, 3)
    places = [row.nonzero().flatten().tolist() for row in _rotary(factors)]
    assert places == [[D], [2 * D + 2], [3], [D + F], [2 * D + 2 + F], [3 + F]]


def test_mha2mla_compresses_weights_by_their_singular_vectors() -> None:
    weight = _weight()
    factors = mha2mla(_unit(), weight, _queries({0: 1, 1: 1, 2: 1}), head_width=2, rank=10)
    still = weight.clone()
    still[[1, D + 1, 2 * D + 1, 1 + F, D + 1 + F, 2 * D + 1 + F]] = 0
    left = still - factors.up[:, 6:] @ factors.encoder[6:] @ weight
    values = torch.linalg.svdvals(still)
    torch.testing.assert_close(left.square().sum(), values[10:].square().sum())
