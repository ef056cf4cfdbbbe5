"""From a Hugging Face causal language model to one that remembers in latents, on one page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .calibrate import LatentStatistics, calibrate, weight_statistics
from .calibrate.states import StateCalibration, StateStatistics, compressible_layers
from .calibrate.text import load_texts, token_sequences
from .config import (
    DEFAULT_DEVICE_PROFILE,
    DEFAULT_RATIO,
    HEADWISE_METHODS,
    WIDTHS_OF,
    CompressionConfig,
)
from .device_profile import DeviceProfile
from .errors import ConfigError, PlanError, UnsupportedModelError
from .factorize import (
    CodedFactors,
    KeyShape,
    Reader,
    Unit,
    code_channels,
    factorize,
    fastest_factors,
    full_rank_factors,
    headwise_factors,
    make_unit,
    read_operations,
    read_seconds,
    row_alignment,
)
from .factorize.state_plan import StateFactors, make_state_unit, plan_states
from .families import check_shared_weights, model_spec, read_attention
from .latent_model import convert_in_place, is_converted
from .modules.attention_parts import AttentionParts
from .plan import ChannelRun, CompressionPlan, LatentPlan, StatePlan
from .spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_DATASET = "wikitext"
DEFAULT_SUBSET = "wikitext-2-raw-v1"


def convert_to_mla(
    model_name_or_path: str | Path | PreTrainedModel,
    compression_ratio: float = 4.0,
    compression_method: str = "auto",
    d_latent: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    use_calibration: bool = True,
    calibration_texts: Sequence[str] | None = None,
    calibration_dataset: str | Path = DEFAULT_DATASET,
    calibration_dataset_subset: str | None = DEFAULT_SUBSET,
    num_calibration_samples: int = 128,
    max_calibration_length: int = 512,
    objective: str = "memory",
    device_profile: str = DEFAULT_DEVICE_PROFILE,
    cache_bits: int | str = "auto",
    scales: str = "static",
    hadamard: bool = False,
    exact_sinks: int = 0,
    exact_window: int = 0,
    metric: str | None = None,
    rank_allocation: str = "global",
    metric_damping: float = 1e-4,
    cross_layer_group_size: int = 4,
    xkv_skip_early_layers: int = 0,
    keep_early_layers_original: bool = False,
    store_original_weights: bool = False,
    state_ratio: float = 1.0,
    state_dtype: str = "auto",
    state_method: str = "auto",
    replay_length: int | None = None,
    budget_bytes: int | None = None,
    context_length: int | None = None,
    trust_remote_code: bool = False,
    seed: int = 0,
    verbose: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Rewrite a causal language model so that its attention caches latents, and, with `state_ratio`
    above 1 or a `state_dtype`, so that its recurrent layers store narrower states in fewer bytes.

    Args:
        model_name_or_path: Hub name, local directory, or a model object. An object is rewritten in
            place; deep-copy it first to keep the original.
        compression_ratio: cache bytes per token before, at 16 bits per element, over bytes after.
        tokenizer: goes with a model object when text is calibrated on; a name or a path brings its
            own.
        device, dtype: where and in what precision to load and convert.
        use_calibration: use text. Without it the weights alone decide (`metric='none'`).
        calibration_texts: texts to calibrate on; they win over `calibration_dataset`.
        calibration_dataset: name for the `datasets` library, `python-docs`, or path of a local
            text file (documents separated by lines `<|endoftext|>`).
        calibration_dataset_subset: configuration of that data set.
        metric: see `CompressionConfig`; None is `fisher` with calibration and `none` without.
        trust_remote_code: passed to `from_pretrained`; code from the Hub runs only if True.
        verbose: print the plan and show a progress bar.

    The other parameters are those of `CompressionConfig`.

    Returns:
        The converted model in evaluation mode, and the tokenizer (None for a model object without
        one). The plan is `plan_of(model)`.

    Raises:
        ConfigError: bad arguments, all listed.
        UnsupportedModelError: a family that is not supported, or a model converted before.
        CalibrationError: no usable text.
        PlanError: a ratio or rank that this model cannot meet.
        A model object is unchanged after any of them.
    """
    config = CompressionConfig(
        compression_ratio=compression_ratio,
        compression_method=compression_method,
        d_latent=d_latent,
        objective=objective,
        device_profile=device_profile,
        cache_bits=cache_bits,
        scales=scales,
        hadamard=hadamard,
        exact_sinks=exact_sinks,
        exact_window=exact_window,
        metric=metric if metric is not None else ("fisher" if use_calibration else "none"),
        rank_allocation=rank_allocation,
        metric_damping=metric_damping,
        cross_layer_group_size=cross_layer_group_size,
        xkv_skip_early_layers=xkv_skip_early_layers,
        keep_early_layers_original=keep_early_layers_original,
        store_original_weights=store_original_weights,
        state_ratio=state_ratio,
        state_dtype=state_dtype,
        state_method=state_method,
        replay_length=replay_length,
        budget_bytes=budget_bytes,
        context_length=context_length,
        num_calibration_samples=num_calibration_samples,
        max_calibration_length=max_calibration_length,
        seed=seed,
    )
    if use_calibration != (config.metric != "none"):
        raise ConfigError(
            f"use_calibration={use_calibration} and metric={config.metric!r} contradict each "
            "other: metric='none' is the one that needs no text; leave metric out, or change it"
        )
    if not use_calibration and calibration_texts is not None:
        raise ConfigError("calibration_texts are not used with use_calibration=False; drop one")
    needs_tokenizer = isinstance(model_name_or_path, torch.nn.Module) and use_calibration
    if needs_tokenizer and tokenizer is None:
        raise ConfigError(
            "a model object needs tokenizer=... to calibrate on text (or use_calibration=False)"
        )
    texts = None
    if use_calibration and calibration_texts is not None:
        texts = _texts(config, calibration_texts, calibration_dataset, calibration_dataset_subset)
    if isinstance(model_name_or_path, torch.nn.Module):
        model = model_name_or_path
        if dtype is not None or device is not None:
            raise ConfigError(
                "device and dtype are for names and paths; move a model object with model.to(...)"
            )
    else:
        model, tokenizer = _load_source(
            model_name_or_path, tokenizer, device, dtype, trust_remote_code
        )
    sequences: list[Tensor] = []
    if use_calibration:
        if texts is None:
            texts = _texts(config, None, calibration_dataset, calibration_dataset_subset)
        sequences = token_sequences(
            tokenizer,
            texts,
            max_length=max_calibration_length,
            num_sequences=num_calibration_samples,
        )
    convert_model(model, config, sequences, progress=verbose)
    if verbose:
        from .latent_model import plan_of

        print(plan_of(model).table(model_spec(model.config)))
    return model, tokenizer


def convert_model(
    model: PreTrainedModel,
    config: CompressionConfig,
    sequences: Iterable[Tensor] = (),
    *,
    statistics: ModelStatistics | list[LatentStatistics] | None = None,
    progress: bool = False,
) -> CompressionPlan:
    """Rewrite `model` in place: spec -> statistics -> factors -> plan -> modules.

    Args:
        model: a source model.
        sequences: calibration token ids, (1, T) each; not used with `metric='none'`.
        statistics: of an equal model under the same metric, from `model_statistics`, instead of
            sequences.

    Returns:
        The plan, which is also stored in the model's config.
    """
    if is_converted(model):
        raise UnsupportedModelError("the model is converted already; convert its source instead")
    spec = model_spec(model.config)
    _check_something_to_do(spec, config)
    compressed = _compressed_parts(_all_parts(model, spec), config)
    if statistics is None:
        statistics = _statistics(model, spec, compressed, config, sequences, progress)
    elif isinstance(statistics, list):
        statistics = ModelStatistics(latents=statistics)
    results, states, factors = _within_budget(spec, compressed, statistics, config)
    plan = _plan(spec, compressed, results, states, config)
    convert_in_place(
        model,
        compressed,
        [result.factors for result in results],
        plan,
        keep_source=config.store_original_weights,
        state_factors=factors,
    )
    return plan


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What calibration found in one model: per attention module, and per recurrent layer."""

    latents: list[LatentStatistics]
    states: list[StateStatistics] | None = None


def _check_something_to_do(spec: ModelSpec, config: CompressionConfig) -> None:
    if not spec.attention_layers:
        if not config.changes_states:
            raise UnsupportedModelError(
                f"this {spec.model_type} model has no attention layers, so there is no KV cache to "
                "compress; give state_ratio to compress its recurrent states"
            )
        if config.compression_ratio != DEFAULT_RATIO or config.d_latent is not None:
            raise ConfigError(
                f"compression_ratio={config.compression_ratio:g} or d_latent has no use for this "
                f"{spec.model_type} model, which has no attention layers; leave it out"
            )
    asked = config.state_ratio != 1 or config.state_dtype != "auto"
    if asked and not compressible_layers(spec):
        raise PlanError(
            f"state_ratio={config.state_ratio:g} and state_dtype={config.state_dtype!r} need "
            f"recurrent states, of which this {spec.model_type} model has none that can be "
            "compressed; leave them out"
        )


def _within_budget(
    spec: ModelSpec,
    parts: list[AttentionParts],
    statistics: ModelStatistics,
    config: CompressionConfig,
) -> tuple[list[CodedFactors], tuple[StatePlan, ...], list[StateFactors | None]]:
    """Factors of all attention modules and plans of all recurrent layers."""
    units = [
        make_unit(stats, len(part.layer_ids), config.metric_damping, _key_shape(part))
        for part, stats in zip(parts, statistics.latents, strict=True)
    ]
    samples = [stats.samples for stats in statistics.latents]

    def latents(budget: float) -> list[CodedFactors]:
        return _factors(parts, units, samples, config, budget) if parts else []

    if not config.changes_states:
        return latents(_budget(spec, parts, config)), (), []
    layers = compressible_layers(spec)
    known: Sequence[StateStatistics | None] = statistics.states or [None] * len(layers)
    state_units = [
        make_state_unit(layer, stats, config) for layer, stats in zip(layers, known, strict=True)
    ]
    kept = spec.bytes_per_sequence - sum(layer.bytes_per_sequence for layer in layers)

    def states(budget: float) -> tuple[tuple[StatePlan, ...], list[StateFactors | None]]:
        plans, factors = plan_states(state_units, config, budget - kept)
        return tuple(plans), factors

    if config.budget_bytes is not None:
        return _joint(spec, parts, config, latents, states)
    # A ratio of 1 with a code sets no limit: everything is kept, in that code.
    total = spec.bytes_per_sequence / config.state_ratio if config.state_ratio > 1 else math.inf
    return latents(_budget(spec, parts, config)) if parts else [], *states(total)


JOINT_SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the source's state bytes that a joint budget may leave to the states."""


def _joint(spec, parts, config, latents, states):
    """Divide `budget_bytes` at `context_length` between keys and values and states, so that the
    predicted loss of both together is least; both are in nats per token under `fisher`."""
    budget, length = config.budget_bytes, config.context_length
    tokens = spec.kv_bytes(length) / max(1, spec.bytes_per_token)
    best, refusal = None, None
    for share in JOINT_SHARES if spec.bytes_per_sequence else (0.0,):
        try:
            plans, factors = states(share * spec.bytes_per_sequence) if share else ((), [])
            stored = sum(plan.bytes_per_sequence for plan in plans)
            left = budget - stored
            results = []
            if parts:
                per_token = min(left / tokens, spec.bytes_per_token)
                results = latents(per_token)
            elif left < 0:
                raise PlanError(f"the states alone take {stored} of {budget} bytes")
        except PlanError as error:
            refusal = error
            continue
        loss = sum(plan.predicted_loss + plan.rounding_loss for plan in plans)
        loss += sum(
            result.factors.loss * len(part.layer_ids)
            for part, result in zip(parts, results, strict=True)
        )
        if best is None or loss < best[0]:
            best = (loss, (results, plans, factors))
    if best is None:
        raise PlanError(
            f"budget_bytes={budget} at context_length={length} cannot be met; the source takes "
            f"{spec.kv_bytes(length) + spec.bytes_per_sequence}: {refusal}"
        ) from refusal
    return best[1]


def model_statistics(
    model: PreTrainedModel,
    config: CompressionConfig,
    sequences: Iterable[Tensor],
    *,
    progress: bool = False,
) -> ModelStatistics:
    """Calibrate once what several conversions of equal models can share.

    States are calibrated as well if `config` changes them.
    """
    spec = model_spec(model.config)
    parts = _compressed_parts(_all_parts(model, spec), config)
    return _statistics(model, spec, parts, config, sequences, progress)


def _all_parts(model: PreTrainedModel, spec: ModelSpec) -> list[AttentionParts]:
    parts = read_attention(model, spec)
    check_shared_weights(parts)
    return parts


def _compressed_parts(
    parts: list[AttentionParts], config: CompressionConfig
) -> list[AttentionParts]:
    if config.xkv_skip_early_layers >= len(parts) and config.compression_method == "xkv":
        raise PlanError(
            f"xkv_skip_early_layers={config.xkv_skip_early_layers} leaves none of the "
            f"{len(parts)} attention layers to share a basis; skip fewer"
        )
    return parts[config.xkv_skip_early_layers :] if config.keep_early_layers_original else parts


def _budget(spec: ModelSpec, parts: list[AttentionParts], config: CompressionConfig) -> float:
    """Bytes per token that the compressed layers may take."""
    compressed_ids = {idx for part in parts for idx in part.layer_ids}
    kept = sum(
        layer.bytes_per_token for layer in spec.layers if layer.layer_idx not in compressed_ids
    )
    total = spec.bytes_per_token / config.compression_ratio
    if total <= kept and config.d_latent is None:
        raise PlanError(
            f"compression_ratio={config.compression_ratio:g} allows {total:.1f} bytes per token, "
            f"but the layers kept as they are take {kept}; ask for at most "
            f"{spec.bytes_per_token / kept:.2f}, or keep fewer layers"
        )
    return total - kept


def _statistics(
    model: PreTrainedModel,
    spec: ModelSpec,
    parts: list[AttentionParts],
    config: CompressionConfig,
    sequences: Iterable[Tensor],
    progress: bool,
) -> ModelStatistics:
    if config.metric == "none":
        return ModelStatistics(latents=[weight_statistics(part) for part in parts])
    watched = config.changes_states and bool(compressible_layers(spec))
    states = StateCalibration(model, spec, config.metric) if watched else None
    latents = calibrate(
        model,
        parts,
        sequences,
        metric=config.metric,
        seed=config.seed,
        states=states,
        progress=progress,
    )
    return ModelStatistics(latents, None if states is None else states.statistics())


def _key_shape(part: AttentionParts) -> KeyShape:
    J, D = part.num_key_value_heads, part.head_dim
    if part.rotary is None:
        return KeyShape(num_heads=J, head_dim=D, cannot_rotate="they are not rotated at all")
    width = part.rotary.rotated_halves(D)
    reason = None
    if part.k_norm is not None:
        reason = "they are normalised before rotation"
    elif part.rotary.depends_on_length:
        reason = "their angles depend on the length of the text"
    elif width is None:
        reason = "the rotation does not turn pairs (i, i + n) of channels"
    return KeyShape(num_heads=J, head_dim=D, rotary_dim=width or D, cannot_rotate=reason)


def _factors(
    parts: list[AttentionParts],
    units: list[Unit],
    samples: list[Tensor | None],
    config: CompressionConfig,
    budget: float,
) -> list[CodedFactors]:
    """Bases, ranks and widths of all modules."""
    headwise = config.compression_method in HEADWISE_METHODS
    if not (config.coded or headwise or config.objective != "memory"):
        return [
            CodedFactors(
                factors=factor,
                runs=((factor.encoder.shape[0], 16),),
                escaped_share=0.0,
                saturated_share=0.0,
            )
            for factor in factorize(units, config, budget)
        ]
    widths = WIDTHS_OF[config.cache_bits] if config.coded else (16,)
    formats = [
        config.row_format(row_alignment(unit.width) if config.coded else 1) for unit in units
    ]
    if headwise:
        full = headwise_factors(units, config.compression_method)
    elif config.objective == "memory":
        full = list(zip(full_rank_factors(units, config), units, strict=True))
    else:
        readers = [
            Reader(num_heads=part.num_attention_heads, read_mode=part.read_mode) for part in parts
        ]
        profile = DeviceProfile.parse(config.device_profile)
        full = fastest_factors(
            units, samples, readers, widths, budget, formats, config.objective, profile
        )
    return code_channels(
        [factor for factor, _ in full],
        [unit for _, unit in full],
        samples,
        widths,
        budget,
        formats=formats,
        hadamard=config.hadamard,
    )


def _plan(
    spec: ModelSpec,
    parts: list[AttentionParts],
    results: list[CodedFactors],
    states: tuple[StatePlan, ...],
    config: CompressionConfig,
) -> CompressionPlan:
    latents = tuple(
        _latent_plan(part, result, config) for part, result in zip(parts, results, strict=True)
    )
    compressed_ids = {idx for latent in latents for idx in latent.layer_ids}
    return CompressionPlan(
        model_type=spec.model_type,
        source_bytes_per_token=spec.bytes_per_token,
        kept_bytes_per_token=sum(
            layer.bytes_per_token for layer in spec.layers if layer.layer_idx not in compressed_ids
        ),
        latents=latents,
        metric=config.metric,
        settings=config.to_dict(),
        states=states,
        source_state_bytes=spec.bytes_per_sequence,
        kept_state_bytes=sum(
            layer.bytes_per_sequence
            for layer in spec.layers
            if layer.layer_idx not in {state.layer_idx for state in states}
        ),
    )


def _latent_plan(
    part: AttentionParts, result: CodedFactors, config: CompressionConfig
) -> LatentPlan:
    factors, runs = result.factors, result.runs
    row_format = None
    if config.coded:
        row_format = config.row_format(row_alignment(part.kv_width))
    frequencies = factors.frequencies
    read_mode = part.read_mode if frequencies is None else "rotate"
    key_rank, value_rank = factors.key_rank, factors.value_up.shape[1]
    operations = read_operations(
        factors.method,
        read_mode,
        num_heads=part.num_attention_heads,
        kv_width=part.kv_width,
        head_dim=part.head_dim,
        key_rank=key_rank,
        value_rank=value_rank,
    )
    plan = LatentPlan(
        layer_ids=part.layer_ids,
        method=factors.method,
        kv_lora_rank=factors.encoder.shape[0],
        key_rank=key_rank,
        value_rank=value_rank,
        read_mode=read_mode,
        runs=tuple(ChannelRun(channels=channels, bits=bits) for channels, bits in runs),
        row_format=row_format,
        frequencies=None if frequencies is None else tuple(frequencies.tolist()),
        exact_sinks=config.exact_sinks if part.sliding_window is None else 0,
        exact_window=config.exact_window,
        basis_group=factors.basis_group,
        predicted_loss=factors.loss * len(part.layer_ids),
        expected_error=factors.expected_error,
        error_bound=factors.error_bound,
        relative_error=factors.relative_error,
        escaped_share=result.escaped_share,
        saturated_share=result.saturated_share,
    )
    profile = DeviceProfile.parse(config.device_profile)
    return replace(plan, read_ns=1e9 * read_seconds(profile, plan.bytes_per_token, operations))


def _texts(
    config: CompressionConfig,
    texts: Sequence[str] | None,
    dataset: str | Path,
    subset: str | None,
) -> list[str]:
    return load_texts(texts, dataset, subset, num_samples=config.num_calibration_samples)


def _load_source(name, tokenizer, device, dtype, trust_remote_code):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model_spec(AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code))
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    model = AutoModelForCausalLM.from_pretrained(
        name, dtype=dtype or "auto", trust_remote_code=trust_remote_code
    )
    return model.to(device or "cpu").eval(), tokenizer
