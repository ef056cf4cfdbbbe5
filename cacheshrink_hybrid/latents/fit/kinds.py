"""Which kind of latent each layer gets: the one asked for, or by its loss and how fast it is read.

memory   a joint latent everywhere: fewest bytes for a given loss; at 16 bits separate ones where
         they lose the same, because they are cheaper to read
speed    by layer the kind that a decode step reads fastest; of those that are about as fast, the
         one that loses least
auto     as `speed`, among the kinds whose loss stays close to that of the joint latent

Only layers that rotate their keys have a choice of speed: others are read by absorbing queries into
a joint latent, which is fastest and loses least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...codecs import RowFormat
from ...config import CompressionConfig
from ...device_profile import DeviceProfile
from ...errors import PlanError
from ...linalg import projection_loss
from ...methods import LATENT_KINDS, LatentKind
from ...ranks import Spectrum, fixed_ranks, global_ranks, uniform_ranks
from ...spec import BYTES_16BIT
from .bits import CodedFactors, code_channels
from .factors import Bases, LatentFactors, Unit
from .read_time import read_operations, read_seconds

EQUAL_LOSS = 1.01
"""Within 1 % of the joint latent's loss, the separate one is taken."""
ABOUT_AS_FAST = 1.25
CLOSE_LOSS = 1.5
"""`auto` gives up at most this factor in a layer's loss for speed."""
JOINT, SEPARATE = LATENT_KINDS["joint"], LATENT_KINDS["separate"]

FullFactors = tuple[LatentFactors, Unit]
Ranks = Callable[[Sequence[Spectrum]], list[int]]


def bases_of(kind: LatentKind, units: Sequence[Unit], config: CompressionConfig) -> list[Bases]:
    """What the function of a kind makes of these modules."""
    settings = {name: getattr(config, name) for name in kind.settings}
    return kind.function()(units, **settings)


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
    if not any(map(_rotates, units)):
        raise PlanError(
            f"compression_method={kind.name!r} is for layers with rotary position embedding, and "
            "this model has none; use 'joint'"
        )
    return [_full(kind if _rotates(unit) else JOINT, unit, config) for unit in units]


def _full(kind: LatentKind, unit: Unit, config: CompressionConfig) -> FullFactors:
    (bases,) = bases_of(kind, [unit], config)
    (pair,) = bases.at_full_rank()
    return pair


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What the time model must know of a module beside its factors: H, and how keys are read when
    they are not stored rotated."""

    num_heads: int
    read_mode: str


def fastest_factors(
    units: Sequence[Unit],
    samples: Sequence[Tensor | None],
    readers: Sequence[Reader],
    widths: Sequence[int],
    budget_bytes: float,
    formats: Sequence[RowFormat],
    config: CompressionConfig,
) -> list[FullFactors]:
    """Full-rank factors of the kind that the config's objective prefers for each module.

    The joint latents share the budget first; each module then compares the other kinds at the bytes
    that its joint latent got.
    """
    joint = [_full(JOINT, unit, config) for unit in units]
    coded = code_channels(
        [factor for factor, _ in joint], units, samples, widths, budget_bytes, formats=formats
    )
    return [
        _preferred(pair, first, sample, reader, widths, row_format, config)
        if _rotates(pair[1])
        else pair
        for pair, first, sample, reader, row_format in zip(
            joint, coded, samples, readers, formats, strict=True
        )
    ]


def _preferred(
    joint: FullFactors,
    coded: CodedFactors,
    sample: Tensor | None,
    reader: Reader,
    widths: Sequence[int],
    row_format: RowFormat,
    config: CompressionConfig,
) -> FullFactors:
    unit = joint[1]
    assert unit.keys is not None
    row_bytes = coded.row_format.row_bytes(coded.runs)
    candidates = [(joint, coded)]
    for kind in LATENT_KINDS.values():
        if not kind.rotary_only or (kind.read_mode == "rotate" and unit.keys.cannot_rotate):
            continue
        pair = _full(kind, unit, config)
        budget = row_bytes * unit.num_layers
        candidates += [
            (pair, result)
            for result in code_channels(
                [pair[0]], [pair[1]], [sample], widths, budget, formats=[row_format]
            )
        ]
    if config.objective == "auto":
        limit = CLOSE_LOSS * coded.factors.loss
        candidates = [(pair, result) for pair, result in candidates if result.factors.loss <= limit]

    profile = DeviceProfile.parse(config.device_profile)

    def seconds(result: CodedFactors) -> float:
        assert unit.keys is not None
        factors = result.factors
        operations = read_operations(
            factors.method,
            LATENT_KINDS[factors.method].read_mode or reader.read_mode,
            num_heads=reader.num_heads,
            kv_width=unit.width,
            head_dim=unit.keys.head_dim,
            key_rank=factors.key_rank,
            value_rank=factors.value_up.shape[1],
        )
        return read_seconds(profile, result.row_format.row_bytes(result.runs), operations)

    limit = ABOUT_AS_FAST * min(seconds(result) for _, result in candidates)
    fast = [(pair, result) for pair, result in candidates if seconds(result) <= limit]
    return min(fast, key=lambda candidate: candidate[1].factors.loss)[0]


def _rotates(unit: Unit) -> bool:
    return unit.keys is not None and unit.keys.rotary_dim > 0
