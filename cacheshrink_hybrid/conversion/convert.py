"""From a Hugging Face causal language model to one that remembers in latents, on one page."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..calibration.amount import positions_of, warn_of_little_text, within_positions
from ..calibration.calibrate import LatentStatistics, calibrate, decoder_layers, weight_statistics
from ..calibration.text import calibration_sequences, load_texts
from ..checkpoint.source_model import (
    check_language_model,
    check_plain_weights,
    forget_quantisation,
    load_source,
)
from ..config import DEFAULT_DEVICE_PROFILE, DEFAULT_RATIO, CompressionConfig
from ..demo.corpus import PYTHON_DOCS
from ..errors import ConfigError, NotSupportedError, PlanError, UnsupportedModelError
from ..families import check_shared_weights, model_spec, read_attention
from ..lasting import lasting_tensors
from ..latents.attention.parts import AttentionParts
from ..latents.fit.held_out import held_out_samples, split_sequences
from ..model.adapters import refuse_adapters
from ..model.attached_plan import is_converted, plan_of
from ..model.original_model import remember_source_values
from ..plan import CompressionPlan
from ..spec import ModelSpec
from ..states.fit.observe import StateCalibration, compressible_layers
from ..states.mixers.mixer import unfoldable_weight
from .arguments import argument_faults
from .in_place import convert_in_place
from .planning import ModelStatistics, plan_model
from .ratio_limit import check_exact_tokens, check_reachable
from .self_check import check_layers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@lasting_tensors()
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
    calibration_dataset: str | Path = PYTHON_DOCS,
    calibration_dataset_subset: str | None = None,
    num_calibration_samples: int = 128,
    max_calibration_length: int = 512,
    num_recall_samples: int | None = None,
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
    self_check: bool = True,
    seed: int = 0,
    inplace: bool = True,
    verbose: bool = True,
    **loading: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Rewrite a causal language model so that its attention caches latents, and, with `state_ratio`
    above 1 or a `state_dtype`, so that its recurrent layers store narrower states in fewer bytes.

    Args:
        model_name_or_path: Hub name, local directory, GGUF file, or a model object.
        compression_ratio: cache bytes per token before, at 16 bits per element, over bytes after.
        tokenizer: goes with a model object when text is calibrated on; a name or a path brings its
            own.
        device, dtype: where and in what precision to load and convert.
        use_calibration: use text. Without it the weights alone decide (`metric='none'`).
        calibration_texts: texts to calibrate on; they win over `calibration_dataset`.
        calibration_dataset: `python-docs` (documentation that every Python has), path of a local
            text file (documents separated by lines `<|endoftext|>`), or the name of a data set on
            the Hub, such as `wikitext`. Best is text of the kind that the model will read.
        calibration_dataset_subset: configuration of a data set on the Hub.
        metric: see `CompressionConfig`; None is `fisher` with calibration and `none` without.
        trust_remote_code: passed to `from_pretrained`; code from the Hub runs only if True.
        self_check: before anything else, compare every layer that is to be replaced, rebuilt at
            full rank, with the source's on a few tokens.
        inplace: rewrite a model object itself. False leaves it alone and converts a copy, which
            takes the memory of its weights once more.
        verbose: print the plan and show a progress bar.
        loading: arguments of `from_pretrained` for names and paths: `revision`, `token`,
            `subfolder`, `cache_dir`, `device_map`, `attn_implementation`, `gguf_file`, ... (all of
            them: `source_model.SOURCE_ARGUMENTS`).

    The other parameters are those of `CompressionConfig`.

    Returns:
        The converted model in evaluation mode, and the tokenizer (None for a model object without
        one). The plan is `plan_of(model)`.

    Raises:
        ConfigError: bad arguments, all listed; no such model or device.
        UnsupportedModelError: a family that is not supported, quantised weights that cannot be
            unpacked, or a model converted before.
        SelfCheckError: a layer that does not compute what its family's row says.
        CalibrationError: no usable text.
        PlanError: a ratio or rank that this model cannot meet.
        A model object is unchanged after any of them.
    """
    faults = list(
        argument_faults(
            tokenizer,
            dtype,
            use_calibration=use_calibration,
            trust_remote_code=trust_remote_code,
            self_check=self_check,
            inplace=inplace,
            verbose=verbose,
        )
    )
    try:
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
            num_recall_samples=num_recall_samples,
            seed=seed,
        )
    except ConfigError as error:
        raise ConfigError("; ".join([*faults, str(error)])) from error
    if faults:
        raise ConfigError("; ".join(faults))
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
    if isinstance(model_name_or_path, torch.nn.Module):
        refuse_adapters(model_name_or_path, "converting")
        check_language_model(model_name_or_path)
    texts: list[str] = []
    if use_calibration:  # first, so that a text that is not there costs no loading
        texts = load_texts(
            calibration_texts,
            calibration_dataset,
            calibration_dataset_subset,
            num_samples=config.num_calibration_samples,
        )
    if isinstance(model_name_or_path, torch.nn.Module):
        if dtype is not None or device is not None or loading:
            given = ", ".join(sorted(loading)) or "device and dtype"
            raise ConfigError(
                f"{given}: no argument for a model object, only for names and paths, or no "
                "argument at all; move a model object with model.to(...)"
            )
        model = model_name_or_path if inplace else copy.deepcopy(model_name_or_path)
    else:
        model, tokenizer = load_source(
            model_name_or_path,
            tokenizer,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            check=lambda spec: check_convertible(spec, config),
            **loading,
        )
    sequences: list[Tensor] = []
    calibrated_on = ""
    if use_calibration:
        config = within_positions(config, model)
        sequences = calibration_sequences(tokenizer, texts, config)
        name = "texts of the caller" if calibration_texts is not None else str(calibration_dataset)
        tokens = sum(ids.numel() for ids in sequences)
        calibrated_on = f"{name}: {len(sequences)} sequences, {tokens:,} tokens"
        if verbose:
            print(f"calibrating on {calibrated_on}", flush=True)
    convert_model(
        model,
        config,
        sequences,
        progress=verbose,
        self_check=self_check,
        calibrated_on=calibrated_on,
    )
    if verbose:
        print(plan_of(model).table(model_spec(model.config)))
    return model, tokenizer


@lasting_tensors()
def convert_model(
    model: PreTrainedModel,
    config: CompressionConfig,
    sequences: Iterable[Tensor] = (),
    *,
    statistics: ModelStatistics | list[LatentStatistics] | None = None,
    progress: bool = False,
    self_check: bool = True,
    calibrated_on: str = "",
) -> CompressionPlan:
    """Rewrite `model` in place: spec -> statistics -> factors -> plan -> modules.

    Args:
        model: a source model.
        sequences: calibration token ids, (1, T) each; not used with `metric='none'`.
        statistics: of an equal model under the same metric, from `model_statistics`, instead of
            sequences.
        self_check: compare every layer that is to be replaced with the source's beforehand.
        calibrated_on: what the sequences are, in words; the plan keeps it.

    Returns:
        The plan, which is also `plan_of(model)`.
    """
    refuse_adapters(model, "converting")
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise NotSupportedError(
            "weights of the model were made inside torch.inference_mode(), and nothing can be "
            "calibrated or trained through them; load the model outside of that context"
        )
    if is_converted(model):
        raise UnsupportedModelError("the model is converted already; convert its source instead")
    check_plain_weights(model)
    check_language_model(model)
    spec = model_spec(model.config)
    check_convertible(spec, config)
    if config.changes_states:
        _check_mixers(model, spec)
    compressed = _compressed_parts(_all_parts(model, spec), config)
    check_exact_tokens(positions_of(model.config), config)
    if self_check:
        mixers = compressible_layers(spec) if config.changes_states else []
        check_layers(model, compressed, mixers, seed=config.seed)
    if statistics is None:
        statistics = _statistics(model, spec, compressed, config, sequences, progress)
    elif isinstance(statistics, list):
        statistics = ModelStatistics(latents=statistics)
    if progress:
        print(f"factorizing {len(compressed)} attention modules", flush=True)
    planned = plan_model(spec, compressed, statistics, config)
    planned = replace(planned, plan=replace(planned.plan, calibrated_on=calibrated_on))
    convert_in_place(
        model,
        compressed,
        [result.factors for result in planned.latents],
        planned.plan,
        keep_source=config.store_original_weights,
        state_factors=planned.states,
    )
    forget_quantisation(model)
    if config.store_original_weights:
        remember_source_values(model)
    return planned.plan


def check_convertible(spec: ModelSpec, config: CompressionConfig) -> None:
    """Raise for what `config` cannot do to any model of this spec."""
    check_something_to_do(spec, config)
    check_reachable(spec, config)


def check_something_to_do(spec: ModelSpec, config: CompressionConfig) -> None:
    """Raise if a model of this spec has nothing that `config` compresses."""
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


def _check_mixers(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Refuse mixers whose weights could not be replaced by shorter ones."""
    for layer in compressible_layers(spec):
        assert layer.state is not None
        mixer = model.get_submodule(layer.state.module_name)
        name = unfoldable_weight(mixer, layer.state.kind)
        if name is not None:
            raise UnsupportedModelError(
                f"{layer.state.module_name}.{name} is parametrized, pruned or offloaded, so that a "
                "shorter one cannot take its place; make it an ordinary parameter that is in "
                "memory first (remove_parametrizations, prune.remove, loading without offload)"
            )


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
    refuse_adapters(model, "calibrating")
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
    fitted, held_out = split_sequences(list(sequences)) if parts else (sequences, [])
    latents = calibrate(
        model,
        parts,
        fitted,
        metric=config.metric,
        seed=config.seed,
        states=states,
        progress=progress,
    )
    warn_of_little_text(latents)
    return ModelStatistics(
        latents,
        None if states is None else states.statistics(),
        held_out_samples(
            model, decoder_layers(model), parts, held_out, metric=config.metric, seed=config.seed
        )
        if held_out
        else None,
    )
