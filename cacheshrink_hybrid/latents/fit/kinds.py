"""Which kind of latent each layer gets: the one asked for, or by its loss and how fast it is read.

memory   a joint latent everywhere: fewest bytes for a given loss; at 16 bits separate ones where
         they lose the same, because they are cheaper to read
speed    by layer the kind that a decode step reads fastest; of those that are about as fast, the
         one that loses least
auto     as `speed`, among the kinds whose loss stays close to that of the joint latent; and beyond
         that where the most time is saved per loss, while the whole model's loss stays slight

Only layers that rotate their keys have a choice of speed: others are read by absorbing queries into
a joint latent, which is fastest and loses least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...codecs import RowFormat
from ...config import CompressionConfig
from ...device_profile import DeviceProfile
from ...errors import PlanError
from ...linalg import projection_loss
from ...methods import LATENT_KINDS, METRICS, LatentKind
from ...ranks import Spectrum, fixed_ranks, global_ranks, uniform_ranks
from ...spec import BYTES_16BIT
from .bits import CodedFactors, code_channels
from .factors import Bases, LatentFactors, Unit
from .held_out_loss import held_out_loss
from .read_time import read_operations, read_seconds
from .statistics import HeldOutSamples

EQUAL_LOSS = 1.01
"""Within 1 % of the joint latent's loss, the separate one is taken."""
ABOUT_AS_FAST = 1.25
CLOSE_LOSS = 1.75
"""`auto` gives up this factor in a layer's loss for speed,"""
SLIGHT_LOSS = 0.002
"""or more, while all layers together lose at most so many nats per token: 0.2 % of perplexity."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A kind of latent for one module, at the bytes of its joint latent.

    Attributes:
        full: factors with all their directions, and the unit as they see it.
        loss: predicted, of all layers that the module serves; on held-out text where there is any.
        seconds: modelled time that a decode step spends on one cached token in these layers.
    """

    full: FullFactors
    loss: float
    seconds: float


def fastest_factors(
    units: Sequence[Unit],
    samples: Sequence[Tensor | None],
    readers: Sequence[Reader],
    widths: Sequence[int],
    budget_bytes: float,
    formats: Sequence[RowFormat],
    config: CompressionConfig,
    held_out: Sequence[HeldOutSamples] | None = None,
) -> list[FullFactors]:
    """Full-rank factors of the kind that the config's objective prefers for each module.

    The joint latents share the budget first; each module then compares the other kinds at the bytes
    that its joint latent got.
    """
    joint = [_full(JOINT, unit, config) for unit in units]
    coded = code_channels(
        [factor for factor, _ in joint], units, samples, widths, budget_bytes, formats=formats
    )
    found: list[list[Candidate]] = []
    for index, (unit, pair, first) in enumerate(zip(units, joint, coded, strict=True)):
        text = None if held_out is None else held_out[index]
        of_kind = partial(
            _candidate, unit=unit, reader=readers[index], held_out=text, config=config
        )
        candidates = [of_kind(pair, first)]
        for full in _other_kinds(unit, config):
            budget = first.row_format.row_bytes(first.runs) * unit.num_layers
            (result,) = code_channels(
                [full[0]], [full[1]], [samples[index]], widths, budget, formats=[formats[index]]
            )
            candidates.append(of_kind(full, result))
        found.append(candidates)
    return [candidate.full for candidate in preferred(found, config)]


def preferred(found: Sequence[Sequence[Candidate]], config: CompressionConfig) -> list[Candidate]:
    """The candidate of each module that the config's objective prefers, `speed` or `auto`.

    Args:
        found: by module, first its joint latent.
    """
    fastest = [_fastest(candidates) for candidates in found]
    if config.objective == "speed":
        return fastest
    close = [_fastest(_close(candidates)) for candidates in found]
    if METRICS[config.metric].unit != "nats/token":
        return close  # whose sum says nothing
    return _within(SLIGHT_LOSS, close, fastest)


def _other_kinds(unit: Unit, config: CompressionConfig) -> Iterator[FullFactors]:
    """Those beside the joint latent that a module may have."""
    if unit.keys is None or not _rotates(unit):
        return
    for kind in LATENT_KINDS.values():
        if kind.rotary_only and not (kind.stores_rotated and unit.keys.cannot_rotate):
            yield _full(kind, unit, config)


def _candidate(
    full: FullFactors,
    result: CodedFactors,
    *,
    unit: Unit,
    reader: Reader,
    held_out: HeldOutSamples | None,
    config: CompressionConfig,
) -> Candidate:
    factors = result.factors
    seconds = 0.0  # what is not rotated has no choice
    if unit.keys is not None:
        operations = read_operations(
            factors.method,
            LATENT_KINDS[factors.method].read_mode or reader.read_mode,
            num_heads=reader.num_heads,
            kv_width=unit.width,
            head_dim=unit.keys.head_dim,
            key_rank=factors.key_rank,
            value_rank=factors.value_up.shape[1],
        )
        profile = DeviceProfile.parse(config.device_profile)
        seconds = read_seconds(profile, result.row_format.row_bytes(result.runs), operations)
    loss = factors.loss
    if held_out is not None:
        loss = held_out_loss(result, unit, held_out, config.coded)
    return Candidate(full=full, loss=loss * unit.num_layers, seconds=seconds * unit.num_layers)


def _close(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that lose about what the first one does, the joint latent."""
    limit = CLOSE_LOSS * candidates[0].loss
    return [candidate for candidate in candidates if candidate.loss <= limit]


def _fastest(candidates: Sequence[Candidate]) -> Candidate:
    """Of those that are about as fast as the fastest, the one that loses least."""
    limit = ABOUT_AS_FAST * min(candidate.seconds for candidate in candidates)
    fast = [candidate for candidate in candidates if candidate.seconds <= limit]
    return min(fast, key=lambda candidate: candidate.loss)


def _within(
    limit: float, chosen: Sequence[Candidate], faster: Sequence[Candidate]
) -> list[Candidate]:
    """By module the chosen candidate, or the faster one: first where it saves the most time for its
    loss, while all modules together lose at most `limit`."""
    found, total = list(chosen), sum(candidate.loss for candidate in chosen)
    saved = [one.seconds - other.seconds for one, other in zip(chosen, faster, strict=True)]
    lost = [other.loss - one.loss for one, other in zip(chosen, faster, strict=True)]
    gaining = [index for index, seconds in enumerate(saved) if seconds > 0]
    for index in sorted(gaining, key=lambda index: lost[index] / saved[index]):
        if total + lost[index] <= limit:
            found[index] = faster[index]
            total += lost[index]
    return found


def _rotates(unit: Unit) -> bool:
    return unit.keys is not None and unit.keys.rotary_dim > 0
