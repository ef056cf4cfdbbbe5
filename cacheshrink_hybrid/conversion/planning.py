"""Ranks, widths and codes of a whole model within its budget: from statistics to plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..codecs import RowFormat
from ..config import CompressionConfig
from ..device_profile import DeviceProfile
from ..errors import PlanError
from ..latents.attention.native_parts import NativeParts
from ..latents.attention.parts import AttentionParts
from ..latents.fit.bits import CodedFactors, code_channels, row_alignment
from ..latents.fit.choice import Choice, Reader, chosen_kinds
from ..latents.fit.factors import LatentFactors, Unit, make_unit
from ..latents.fit.held_out import HeldOutText
from ..latents.fit.held_out_loss import held_out_loss
from ..latents.fit.kinds import FullFactors, factorize, full_rank_factors
from ..latents.plan import LatentPlan
from ..methods import AUTO, WIDTHS_OF
from ..plan import CompressionPlan
from ..spec import ModelSpec
from ..states.fit.observe import StateStatistics
from ..states.fit.planner import StateFactors, make_state_unit, plan_states
from ..states.kinds import compressible_layers
from ..states.plan import StatePlan
from .exact_counts import counts_beside, exact_counts
from .key_shapes import key_shape
from .latent_plans import latent_plan
from .ratio_limit import compressed_layers, kept_bytes
from .statistics import ModelStatistics

CodedChoices = list[tuple[CodedFactors, Choice | None]]
"""Of each attention module, and what its kind was chosen from, where speed was weighed."""


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What conversion puts into a model.

    Attributes:
        plan: sizes of everything.
        latents: bases and runs of each attention module.
        states: bases of each recurrent layer that is planned; None keeps the source's.
    """

    plan: CompressionPlan
    latents: list[CodedFactors]
    states: list[StateFactors | None]


def plan_model(
    spec: ModelSpec,
    parts: list[AttentionParts],
    statistics: ModelStatistics,
    config: CompressionConfig,
    positions: int | None = None,
) -> PlannedModel:
    """Choose ranks, widths and codes of all compressed layers within the budget of `config`.

    Args:
        parts: the attention modules to compress.
        statistics: of these modules and, where `config` changes them, of the recurrent states.
        positions: of the model; None for no limit.

    Raises:
        PlanError: a budget that this model cannot meet.
    """
    units = [
        make_unit(stats, len(part.layer_ids), config.metric_damping, key_shape(part))
        for part, stats in zip(parts, statistics.latents, strict=True)
    ]
    samples = [stats.samples for stats in statistics.latents]
    held_out = None if statistics.held_out is None else statistics.held_out.samples

    profile = _profile(parts, config)

    def latents(bytes_per_token: float, weighs_speed: bool) -> CodedChoices:
        if not parts:
            return []
        if not weighs_speed:
            coded = _factors(units, samples, config, bytes_per_token)
            return [(result, None) for result in coded]
        readers = [
            Reader(
                num_heads=part.num_attention_heads,
                read_mode=part.read_mode,
                scores_values=isinstance(part, NativeParts),
                num_modules=1 + len(part.readers),
            )
            for part in parts
        ]
        formats = _formats(units, config)
        choices = chosen_kinds(
            units,
            samples,
            readers,
            _widths(config),
            bytes_per_token,
            formats,
            config,
            profile,
            held_out,
        )
        if all(choice.taken is choice.joint for choice in choices) and not config.hadamard:
            return [(choice.joint.coded, choice) for choice in choices]
        full = [choice.taken.full for choice in choices]
        coded = _coded(full, samples, config, bytes_per_token, formats)
        return list(zip(coded, choices, strict=True))

    layers = compressible_layers(spec) if config.changes_states else []
    known: Sequence[StateStatistics | None] = statistics.states or [None] * len(layers)
    state_units = [
        make_state_unit(layer, stats, config) for layer, stats in zip(layers, known, strict=True)
    ]
    kept = spec.bytes_per_sequence - sum(layer.bytes_per_sequence for layer in layers)

    def planned(
        bytes_per_token: float, bytes_per_sequence: float, weighs_speed: bool = False
    ) -> PlannedModel:
        plans: list[StatePlan] = []
        states: list[StateFactors | None] = []
        if state_units:
            plans, states = plan_states(state_units, config, bytes_per_sequence - kept)
        found = latents(bytes_per_token, weighs_speed)
        of_layers = []
        for part, (result, choice) in zip(parts, found, strict=True):
            exact = exact_counts(config, positions, part.sliding_window)
            exact = counts_beside(result.runs, exact, config)
            of_layers.append(latent_plan(part, result, exact, config, profile, choice))
        plan = _plan(spec, of_layers, tuple(plans), config, profile)
        return PlannedModel(plan, [result for result, _ in found], states)

    # A ratio of 1 with a code sets no limit: everything is kept, in that code.
    limit = spec.bytes_per_sequence / config.state_ratio if config.state_ratio > 1 else math.inf
    if config.budget_bytes is not None:
        room, limit = _division(spec, config, planned)
    else:
        room = _budget(spec, config) if parts else 0.0
    found = planned(room, limit, config.weighs_speed)
    return _scored(found, units, statistics.held_out, config)


def _scored(
    planned: PlannedModel,
    units: list[Unit],
    held_out: HeldOutText | None,
    config: CompressionConfig,
) -> PlannedModel:
    """With the loss of keys and values on held-out text, where there is any."""
    if held_out is None:
        return planned
    latents = tuple(
        replace(
            latent,
            held_out_loss=held_out_loss(result, unit, samples, config.coded)
            * len(latent.layer_ids),
        )
        for latent, result, unit, samples in zip(
            planned.plan.latents, planned.latents, units, held_out.samples, strict=True
        )
    )
    return replace(planned, plan=replace(planned.plan, latents=latents))


JOINT_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the source's state bytes that a joint budget may leave to the states."""
BISECTIONS = 7
"""Steps in which the room for latents is narrowed down where windows, exact tokens or states that
are kept leave them less than was thought."""


def _division(
    spec: ModelSpec,
    config: CompressionConfig,
    planned: Callable[[float, float], PlannedModel],
) -> tuple[float, float]:
    """Divide `budget_bytes` at `context_length` between keys and values and states, so that the
    predicted loss of both together is least; both are in nats per token under `fisher`.

    Args:
        planned: bytes per token of latents and bytes per sequence -> the best plan within both.

    Returns:
        What to give to `planned`.
    """
    budget, length = config.budget_bytes, config.context_length
    assert budget is not None and length is not None
    tokens = spec.kv_bytes(length) / max(1, spec.bytes_per_token)
    best: CompressionPlan | None = None
    division = 0.0, 0.0
    refusal: PlanError | None = None
    for share in JOINT_SHARES if spec.bytes_per_sequence else (0.0,):
        state_bytes = share * spec.bytes_per_sequence
        low, high = 0.0, min((budget - state_bytes) / max(1, tokens), spec.bytes_per_token)
        room = high
        for _ in range(1 + BISECTIONS):
            try:
                found = planned(room, state_bytes)
            except PlanError as error:
                refusal, low = error, room
            else:
                if found.plan.bytes_at(spec, length) > budget:
                    high = room
                else:
                    low = room
                    if best is None or found.plan.total_loss < best.total_loss:
                        best = found.plan
                        # What it takes, and not what it had, so that another plan takes no more.
                        taken = best.bytes_per_token - best.kept_bytes_per_token
                        division = taken, state_bytes
            if high - low < 1 or low >= high:
                break
            room = (low + high) / 2
    if best is None:
        reason = refusal or "what windows, exact tokens and kept states take leaves too little"
        raise PlanError(
            f"budget_bytes={budget} at context_length={length} cannot be met; the source takes "
            f"{spec.kv_bytes(length) + spec.bytes_per_sequence}: {reason}"
        ) from refusal
    return division


def _budget(spec: ModelSpec, config: CompressionConfig) -> float:
    """Bytes per token that the compressed layers may take."""
    kept = kept_bytes(spec, compressed_layers(spec, config))
    total = spec.bytes_per_token / config.compression_ratio
    if total <= kept and config.d_latent is None:
        raise PlanError(
            f"compression_ratio={config.compression_ratio:g} allows {total:.1f} bytes per token, "
            f"but the layers kept as they are take {kept}; ask for at most "
            f"{spec.bytes_per_token / kept:.2f}, or keep fewer layers"
        )
    return total - kept


def _profile(parts: list[AttentionParts], config: CompressionConfig) -> DeviceProfile:
    """What the device can do that is to read the latents."""
    if config.device_profile != AUTO:
        return DeviceProfile.parse(config.device_profile)
    return DeviceProfile.of(parts[0].key.weight().device if parts else torch.device("cpu"))


def _factors(
    units: list[Unit], samples: list[Tensor | None], config: CompressionConfig, budget: float
) -> list[CodedFactors]:
    """Bases, ranks and widths of all modules, of the kind that they are to have or that loses
    least."""
    ranked = config.latent_kind is None or config.latent_kind.ranked
    if ranked and not config.coded:
        return [
            CodedFactors(
                factors=factor,
                runs=_uncoded_runs(factor),
                row_format=config.row_format(alignment=1),
            )
            for factor in factorize(units, config, budget)
        ]
    full = full_rank_factors(units, config)
    return _coded(full, samples, config, budget, _formats(units, config))


def _uncoded_runs(factor: LatentFactors) -> tuple[tuple[int, int], ...]:
    """All channels at 16 bits; keys apart from values where groups of heads have both, since a run
    holds the channels of one group behind those of the other."""
    apart = factor.num_groups > 1 and factor.value_offset > 0
    sizes = (factor.key_rank, factor.value_up.shape[1]) if apart else (factor.encoder.shape[0],)
    return tuple((size, 16) for size in sizes)


def _widths(config: CompressionConfig) -> tuple[int, ...]:
    return WIDTHS_OF[config.cache_bits] if config.coded else (16,)


def _formats(units: list[Unit], config: CompressionConfig) -> list[RowFormat]:
    widths = [len(unit.mean) for unit in units]
    return [config.row_format(row_alignment(n) if config.coded else 1) for n in widths]


def _coded(
    full: list[FullFactors],
    samples: list[Tensor | None],
    config: CompressionConfig,
    budget: float,
    formats: list[RowFormat],
) -> list[CodedFactors]:
    return code_channels(
        [factor for factor, _ in full],
        [unit for _, unit in full],
        samples,
        _widths(config),
        budget,
        formats=formats,
        hadamard=config.hadamard,
    )


def _plan(
    spec: ModelSpec,
    latents: list[LatentPlan],
    states: tuple[StatePlan, ...],
    config: CompressionConfig,
    profile: DeviceProfile,
) -> CompressionPlan:
    compressed_ids = {idx for latent in latents for idx in latent.layer_ids}
    return CompressionPlan(
        model_type=spec.model_type,
        source_bytes_per_token=spec.bytes_per_token,
        kept_bytes_per_token=sum(
            layer.bytes_per_token for layer in spec.layers if layer.layer_idx not in compressed_ids
        ),
        latents=tuple(latents),
        metric=config.metric,
        settings=config.to_dict(),
        device=profile.name,
        states=states,
        source_state_bytes=spec.bytes_per_sequence,
        kept_state_bytes=sum(
            layer.bytes_per_sequence
            for layer in spec.layers
            if layer.layer_idx not in {state.layer_idx for state in states}
        ),
    )
