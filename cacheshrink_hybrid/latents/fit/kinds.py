"""Bases of a kind of latent for all modules, up to the ranks that a budget allows or in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ...config import CompressionConfig
from ...errors import PlanError
from ...linalg import projection_loss
from ...methods import LATENT_KINDS, LatentKind
from ...ranks import Spectrum, fixed_ranks, global_ranks, uniform_ranks
from ...spec import BYTES_16BIT
from .decoupled import at_best_width
from .factors import Bases, LatentFactors, Unit
from .head_groups import grouped_bases
from .rotate import seen_in_blocks

EQUAL_LOSS = 1.01
"""Within 1 % of the joint latent's loss, the separate one is taken."""
JOINT, SEPARATE = LATENT_KINDS["joint"], LATENT_KINDS["separate"]

FullFactors = tuple[LatentFactors, Unit]
Ranks = Callable[[Sequence[Spectrum]], list[int]]


def bases_of(kind: LatentKind, units: Sequence[Unit], config: CompressionConfig) -> list[Bases]:
    """What the function of a kind makes of these modules."""
    settings = {name: getattr(config, name) for name in kind.settings}
    fit = partial(kind.function(), **settings)
    if config.head_groups == 1:
        return fit(units)
    return [
        grouped_bases(
            unit, config.head_groups, fit, seen_in_blocks(unit) if kind.stores_rotated else unit
        )
        for unit in units
    ]


def factorize(
    units: Sequence[Unit], config: CompressionConfig, budget_bytes: float
) -> list[LatentFactors]:
    """Factors of all modules at 16 bits, with ranks that fit into `budget_bytes` per token.

    With `config.d_latent` that rank is used everywhere instead, whatever it costs.

    Raises:
        PlanError: if the budget or the rank cannot be met.
    """

    def ranks(spectra: Sequence[Spectrum]) -> list[int]:
        if config.d_latent is not None:
            return fixed_ranks(spectra, config.d_latent)
        if config.rank_allocation == "uniform":
            return uniform_ranks(spectra, budget_bytes)
        return global_ranks(spectra, budget_bytes)

    kind = config.latent_kind
    if kind is not None and kind.decouples:
        return at_best_width(units, config.qk_rope_head_dim, ranks)
    factors = _at_ranks(bases_of(kind or JOINT, units, config), ranks)
    if kind is not None:
        return factors
    return [
        _separate_if_equal(joint, unit, config) for joint, unit in zip(factors, units, strict=True)
    ]


def _at_ranks(bases: Sequence[Bases], ranks: Ranks) -> list[LatentFactors]:
    chosen = iter(ranks([spectrum for one in bases for spectrum in one.spectra]))
    return [factor for one in bases for factor in one.at([next(chosen) for _ in one.spectra])]


def _separate_if_equal(
    joint: LatentFactors, unit: Unit, config: CompressionConfig
) -> LatentFactors:
    """Separate factors of as many channels where they lose the same as joint ones."""
    rank = joint.encoder.shape[0]
    if rank < 2:
        return joint
    budget = rank * BYTES_16BIT * unit.num_layers
    (separate,) = _at_ranks(
        bases_of(SEPARATE, [unit], config), lambda spectra: global_ranks(spectra, budget)
    )
    nothing = torch.zeros_like(unit.metric)
    total = projection_loss(nothing, unit.metric, unit.covariance, unit.metric)
    return separate if separate.loss <= EQUAL_LOSS * joint.loss + 1e-12 * total else joint


def full_rank_factors(units: Sequence[Unit], config: CompressionConfig) -> list[FullFactors]:
    """Factors with all their directions, for a later choice of channels, and the units as they see
    them; `auto` is `joint` here.

    Raises:
        PlanError: a kind for modules that rotate their keys, of which there are none, or one of
            which cannot be stored this way.
    """
    kind = config.latent_kind or JOINT
    if not kind.rotary_only:
        return [pair for one in bases_of(kind, units, config) for pair in one.at_full_rank()]
    if not any(map(rotates, units)):
        raise PlanError(
            f"compression_method={kind.name!r} is for layers with rotary position embedding, and "
            "this model has none; use 'joint'"
        )
    return [full_factors(kind if rotates(unit) else JOINT, unit, config) for unit in units]


def full_factors(kind: LatentKind, unit: Unit, config: CompressionConfig) -> FullFactors:
    (bases,) = bases_of(kind, [unit], config)
    (pair,) = bases.at_full_rank()
    return pair


def rotates(unit: Unit) -> bool:
    return unit.keys is not None and unit.keys.rotary_dim > 0
