"""Which kind of latent each layer gets, by its loss and how fast it is read.

memory   a joint latent everywhere: fewest bytes for a given loss; at 16 bits separate ones where
         they lose the same, because they are cheaper to read
speed    by layer the kind that a decode step reads fastest; of those that are about as fast, the
         one that loses least
auto     a joint latent, or where that is read faster the best of what is: first where the most time
         is saved per loss, in models and layers that lose little more for it, while the whole
         model loses little; and in any layer while it loses next to nothing

Only layers that rotate their keys have a choice of speed: others are read by absorbing queries into
a joint latent, which is fastest and loses least. `auto` weighs nats per token, and keeps to joint
latents under metrics whose losses are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ...codecs import RowFormat
from ...config import CompressionConfig
from ...device_profile import DeviceProfile
from ...methods import LATENT_KINDS, METRICS, NATS, LatentKind
from .bits import CodedFactors, code_channels
from .factors import Unit
from .held_out_loss import held_out_loss
from .kinds import JOINT, FullFactors, full_factors, rotates
from .read_time import Reading
from .statistics import HeldOutSamples

ABOUT_AS_FAST = 1.25
CLOSE_LOSS = 2.0
"""`auto` gives up this factor in loss for speed, in models that lose no more by it, layer by layer,
"""
LITTLE_LOSS = 0.02
"""while all layers together are to lose at most so many nats per token,"""
SLIGHT_LOSS = 0.0002
"""and any factor while they are to lose at most so many: 0.02 % of perplexity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What the time model must know of a module beside its factors: H, how keys are read when they
    are not stored rotated, whether values are met as well (`Reading.scores_values`), and how many
    modules read what it stores, itself included."""

    num_heads: int
    read_mode: str
    scores_values: bool = False
    num_modules: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A kind of latent for one module, at the bytes of its joint latent.

    Attributes:
        full: factors with all their directions, and the unit as they see it.
        coded: what becomes of them at these bytes.
        loss: predicted, of all layers that the module serves; on held-out text where there is any.
        seconds: modelled time that a decode step spends on one cached token in these layers.
    """

    full: FullFactors
    coded: CodedFactors
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The kind that a module gets, and its joint latent, which may be the same."""

    taken: Candidate
    joint: Candidate


def chosen_kinds(
    units: Sequence[Unit],
    samples: Sequence[Tensor | None],
    readers: Sequence[Reader],
    widths: Sequence[int],
    budget_bytes: float,
    formats: Sequence[RowFormat],
    config: CompressionConfig,
    profile: DeviceProfile,
    held_out: Sequence[HeldOutSamples] | None = None,
) -> list[Choice]:
    """The kind that the config's objective prefers for each module.

    The joint latents share the budget first; each module then compares the other kinds at the bytes
    that its joint latent got.
    """
    joint = [full_factors(JOINT, unit, config) for unit in units]
    coded = code_channels(
        [factor for factor, _ in joint], units, samples, widths, budget_bytes, formats=formats
    )
    candidates_of = [
        partial(
            _candidate,
            unit=unit,
            reader=reader,
            held_out=None if held_out is None else held_out[index],
            coded=config.coded,
            profile=profile,
        )
        for index, (unit, reader) in enumerate(zip(units, readers, strict=True))
    ]
    found = [
        [of(full, result)] for of, full, result in zip(candidates_of, joint, coded, strict=True)
    ]
    if config.objective == "speed" or _has_room(found, config):
        for index, (unit, first) in enumerate(zip(units, coded, strict=True)):
            row_bytes = first.row_format.row_bytes(first.runs, config.head_groups)
            budget = row_bytes * unit.num_layers
            for kind in _other_kinds(unit, config, profile):
                full = full_factors(kind, unit, config)
                (result,) = code_channels(
                    [full[0]],
                    [full[1]],
                    [samples[index]],
                    widths,
                    budget,
                    formats=[first.row_format],
                )
                if _kernels_read(result):
                    found[index].append(candidates_of[index](full, result))
    taken = preferred(found, config)
    return [Choice(one, first[0]) for one, first in zip(taken, found, strict=True)]


def preferred(found: Sequence[Sequence[Candidate]], config: CompressionConfig) -> list[Candidate]:
    """The candidate of each module that the config's objective prefers, `speed` or `auto`.

    Args:
        found: by module, first its joint latent.
    """
    fastest = [_fastest(candidates) for candidates in found]
    if config.objective == "speed":
        return fastest
    joint = [candidates[0] for candidates in found]
    if not _has_room(found, config):
        return joint
    taken = joint
    if _lost(fastest) <= CLOSE_LOSS * _lost(joint):
        close = [_fastest(_close(candidates)) for candidates in found]
        taken = _within(LITTLE_LOSS, joint, close)
    return _within(SLIGHT_LOSS, taken, fastest)


def _has_room(found: Sequence[Sequence[Candidate]], config: CompressionConfig) -> bool:
    """Whether joint latents, the first of each module, lose so little that `auto` may add to it."""
    lost = _lost([candidates[0] for candidates in found])
    return METRICS[config.metric].unit == NATS and lost < LITTLE_LOSS


def _lost(candidates: Sequence[Candidate]) -> float:
    return sum(candidate.loss for candidate in candidates)


def _other_kinds(unit: Unit, config: CompressionConfig, profile: DeviceProfile) -> list[LatentKind]:
    """Those beside the joint latent that a module may have, but for those that need statistics of
    their own. Trying one takes time, so that where nothing but rows is read `auto` tries of those
    that store rotated keys the one that loses least, in one latent with values."""
    if unit.keys is None or not rotates(unit):
        return []
    possible = [
        kind
        for kind in LATENT_KINDS.values()
        if kind.rotary_only
        and not kind.decouples
        and not (kind.stores_rotated and unit.keys.cannot_rotate)
    ]
    if config.objective == "speed" or not profile.fused:
        return possible
    return [kind for kind in possible if kind.joint] or possible


def _kernels_read(result: CodedFactors) -> bool:
    """Whether something is kept of keys and of values, without which torch reads the rows."""
    return result.factors.key_rank > 0 and result.factors.value_up.shape[1] > 0


def _candidate(
    full: FullFactors,
    result: CodedFactors,
    *,
    unit: Unit,
    reader: Reader,
    held_out: HeldOutSamples | None,
    coded: bool,
    profile: DeviceProfile,
) -> Candidate:
    factors = result.factors
    seconds = 0.0  # what is not rotated has no choice
    if unit.keys is not None:
        reading = Reading(
            method=factors.method,
            read_mode=LATENT_KINDS[factors.method].read_mode or reader.read_mode,
            num_heads=reader.num_heads,
            kv_width=unit.key_width,
            head_dim=unit.keys.head_dim,
            key_rank=factors.key_rank,
            value_rank=factors.value_up.shape[1],
            row_bytes=result.row_format.row_bytes(result.runs),
            scores_values=reader.scores_values,
        )
        seconds = reading.seconds(profile) * reader.num_modules
    loss = factors.loss
    if held_out is not None:
        loss = held_out_loss(result, unit, held_out, coded)
    return Candidate(
        full=full,
        coded=result,
        loss=loss * unit.num_layers,
        seconds=seconds * unit.num_layers,
    )


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
    found, total = list(chosen), _lost(chosen)
    saved = [one.seconds - other.seconds for one, other in zip(chosen, faster, strict=True)]
    lost = [other.loss - one.loss for one, other in zip(chosen, faster, strict=True)]
    gaining = [index for index, seconds in enumerate(saved) if seconds > 0]
    for index in sorted(gaining, key=lambda index: lost[index] / saved[index]):
        if total + lost[index] <= limit:
            found[index] = faster[index]
            total += lost[index]
    return found
