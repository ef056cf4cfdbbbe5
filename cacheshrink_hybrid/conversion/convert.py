"""From a Hugging Face causal language model to one that remembers in latents, on one page."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..calibration.amount import positions_of, within_positions
from ..calibration.calibrate import LatentStatistics
from ..calibration.material import CalibrationMaterial, load_material
from ..calibration.pair_files import load_pairs
from ..calibration.pairs import check_pairs, paired_sequences, tokenized
from ..calibration.sequences import CalibrationSequences
from ..calibration.text import calibration_sequences, evenly_spread
from ..chat_template import chat_text
from ..checkpoint.source_model import check_language_model, forget_quantisation, load_source
from ..config import CompressionConfig
from ..errors import ConfigError
from ..families import model_spec
from ..freed_memory import return_freed_memory
from ..lasting import lasting_tensors
from ..latents.fit.held_out import split_sequences
from ..model.adapters import refuse_adapters
from ..model.attached_plan import attach_certificate, plan_of
from ..model.original_model import remember_source_values
from ..paired_text import Text, ids_of
from ..plan import CompressionPlan
from ..spec import ModelSpec
from ..states.kinds import compressible_layers
from .arguments import (
    chosen_config,
    flag_faults,
    material_faults,
    option_faults,
    sorted_out,
    tokenizer_faults,
)
from .certify import certify
from .cross_plan import PlannedCross, with_cross_plan
from .exact_counts import check_exact_counts, sinks_of
from .in_place import convert_in_place
from .key_shapes import check_decoupled
from .options import ConversionOptions
from .planning import plan_model
from .ratio_limit import compressed_layers
from .refusals import check_convertible, check_material, check_mixers, check_source
from .self_check import check_layers
from .statistics import ModelStatistics, compressed_parts, statistics_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@lasting_tensors()
def convert_to_mla(
    model_name_or_path: str | Path | PreTrainedModel,
    compression_ratio: float | None = None,
    compression_method: str | None = None,
    d_latent: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    use_calibration: bool = True,
    calibration_texts: Sequence[str] | None = None,
    calibration_dataset: str | Path | None = None,
    config: CompressionConfig | None = None,
    verbose: bool = True,
    **settings: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Rewrite a causal language model so that its attention caches latents, and, with `state_ratio`
    above 1 or a `state_dtype`, so that its recurrent layers store narrower states in fewer bytes.

    Args:
        model_name_or_path: Hub name, local directory, GGUF file, or a model object.
        compression_ratio, compression_method, d_latent: see `CompressionConfig`, whose defaults
            stand for None.
        tokenizer: goes with a model object when text is calibrated on; a name or a path brings its
            own.
        use_calibration: use text. Without it the weights alone decide (`metric='none'`).
        calibration_texts: texts to calibrate on; they win over `calibration_dataset`.
        calibration_dataset: `python-docs` (documentation that every Python has), path of a local
            text file (documents separated by lines `<|endoftext|>`), or the name of a data set on
            the Hub, such as `wikitext`. Best is text of the kind that the model will read. Without
            one it is `python-docs`, or `calibration_chats` alone where they are given.
        config: all settings of the compression in one record, instead of by name.
        verbose: print the plan and show a progress bar.
        settings: every other setting of `CompressionConfig` (how far, and by which method: see
            `help(CompressionConfig)`) and of `conversion.options.ConversionOptions` (`device`,
            `dtype`, `calibration_chats`, `self_check`, `inplace`, ...); for names and paths also
            arguments of `from_pretrained`: `revision`, `token`, `subfolder`, `device_map`,
            `attn_implementation`, `gguf_file`, ... (`source_model.SOURCE_ARGUMENTS`).

    Returns:
        The converted model in evaluation mode, and the tokenizer (None for a model object without
        one). The plan is `plan_of(model)`.

    Raises:
        ConfigError: bad or unknown arguments, all listed; `config` together with a setting by name;
            no such model or device.
        UnsupportedModelError: a family that is not supported, quantised weights that cannot be
            unpacked, or a model converted before.
        SelfCheckError: a layer that does not compute what its family's row says.
        CalibrationError: no usable text.
        PlanError: a ratio or rank that this model cannot meet.
        A model object is unchanged after any of them.
    """
    own = [name for name in signature(convert_to_mla).parameters if name != "settings"]
    named, options, loading = sorted_out(settings, own)
    named |= {
        "compression_ratio": compression_ratio,
        "compression_method": compression_method,
        "d_latent": d_latent,
    }
    faults = [
        *tokenizer_faults(tokenizer),
        *option_faults(options),
        *flag_faults("use_calibration", use_calibration),
        *flag_faults("verbose", verbose),
        *material_faults(calibration_texts, calibration_dataset, options),
    ]
    try:
        chosen = chosen_config(config, named, use_calibration=use_calibration)
    except ConfigError as error:
        raise ConfigError("; ".join([*faults, str(error)])) from error
    if faults:
        raise ConfigError("; ".join(faults))
    for name, given in (
        ("calibration_texts", calibration_texts),
        ("calibration_chats", options.calibration_chats),
        ("calibration_inputs", options.calibration_inputs),
    ):
        if not use_calibration and given is not None:
            raise ConfigError(f"{name} are not used with use_calibration=False; drop one")
    source = model_name_or_path
    pairs: Any = options.calibration_inputs
    written = None
    if isinstance(pairs, (str, Path)):
        written = load_pairs(Path(pairs), options.pair_fields)
    elif pairs is not None:
        check_pairs(pairs)
    if isinstance(source, torch.nn.Module):
        _check_object(source, options, loading)
        check_material(model_spec(source.config), chosen, pairs)
        if use_calibration and tokenizer is None and (pairs is None or written is not None):
            raise ConfigError(
                "a model object needs tokenizer=... to calibrate on text (or use_calibration=False)"
            )
    material = CalibrationMaterial()
    if use_calibration and pairs is None:  # first, so that a missing text costs no loading
        material = load_material(
            calibration_texts,
            calibration_dataset,
            options.calibration_dataset_subset,
            options.calibration_chats,
            chosen.num_calibration_samples,
        )

    def check_chats(tokenizer: PreTrainedTokenizerBase) -> None:
        for chat in material.chats:
            chat_text(tokenizer, chat)

    def check(spec: ModelSpec) -> None:
        check_convertible(spec, chosen)
        check_material(spec, chosen, pairs)

    if isinstance(source, torch.nn.Module):
        check_chats(tokenizer)
        model = source if options.inplace else copy.deepcopy(source)
    else:
        model, tokenizer = load_source(
            source,
            tokenizer,
            device=options.device,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
            check=check,
            check_tokenizer=check_chats,
            **loading,
        )
    sequences = CalibrationSequences([])
    calibrated_on = ""
    if use_calibration:
        chosen = within_positions(chosen, model)
        name = material.name if pairs is None else "pairs of the caller"
        if written is not None:
            name = f"pairs of {pairs}"
            chosen_pairs = evenly_spread(written, chosen.num_calibration_samples)
            pairs = tokenized(model, tokenizer, chosen_pairs, chosen.max_calibration_length)
        sequences = (
            calibration_sequences(tokenizer, material.texts, chosen, material.chats, model=model)
            if pairs is None
            else paired_sequences(model, pairs, chosen.num_calibration_samples)
        )
        calibrated_on = f"{name}: {_amount(sequences, model_spec(model.config))}"
        if verbose:
            print(f"calibrating on {calibrated_on}", flush=True)
    convert_model(
        model,
        chosen,
        sequences,
        progress=verbose,
        self_check=options.self_check,
        calibrated_on=calibrated_on,
    )
    if verbose:
        print(plan_of(model).table(model_spec(model.config)))
    return model, tokenizer


def _amount(sequences: CalibrationSequences, spec: ModelSpec) -> str:
    """How much text that is, and how much of it bases of keys and values are not fitted to."""
    texts, exercises = sequences.texts, sequences.exercises
    words = f"{len(texts)} sequences, {sum(ids_of(text).numel() for text in texts):,} tokens"
    held_out = len(split_sequences(texts)[1]) if spec.attention_layers else 0
    if held_out:
        words += f", {held_out} of the sequences held out"
    return f"{words}; {len(exercises)} exercises in remembering" if exercises else words


def _check_object(
    model: PreTrainedModel, options: ConversionOptions, loading: dict[str, Any]
) -> None:
    """Raise for a model object that is none to convert, or arguments that say how to load one."""
    given = [name for name in ("device", "dtype") if getattr(options, name) is not None]
    if given or loading:
        raise ConfigError(
            f"{', '.join([*given, *loading])}: no argument for a model object, only for names and "
            "paths; leave it out, and move a model object with model.to(...)"
        )
    refuse_adapters(model, "converting")
    check_language_model(model)


@lasting_tensors()
def convert_model(
    model: PreTrainedModel,
    config: CompressionConfig,
    sequences: Iterable[Text] = (),
    *,
    statistics: ModelStatistics | list[LatentStatistics] | None = None,
    progress: bool = False,
    self_check: bool = True,
    calibrated_on: str = "",
) -> CompressionPlan:
    """Rewrite `model` in place: spec -> statistics -> factors -> plan -> modules.

    Args:
        model: a source model.
        sequences: calibration token ids, (1, T) each, or pairs; not used with `metric='none'`.
        statistics: of an equal model under the same metric, from `model_statistics`, instead of
            sequences.
        self_check: compare every layer that is to be replaced with the source's beforehand.
        calibrated_on: what the sequences are, in words; the plan keeps it.

    Returns:
        The plan, which is also `plan_of(model)`.
    """
    check_source(model)
    spec = model_spec(model.config)
    check_convertible(spec, config)
    if config.changes_states:
        check_mixers(model, spec)
    compressed = compressed_parts(model, spec, config)
    cross = compressed_parts(model, spec, config, crosses=True)
    decouples = config.latent_kind is not None and config.latent_kind.decouples
    if decouples:
        check_decoupled(compressed)
    positions = positions_of(model.config)
    check_exact_counts(config, positions, compressed_layers(spec, config))
    if self_check:
        mixers = compressible_layers(spec) if config.changes_states else []
        check_layers(model, [*compressed, *cross], mixers, seed=config.seed)
    if statistics is None:
        statistics = statistics_of(model, spec, compressed, config, sequences, progress, cross)
    elif isinstance(statistics, list):
        statistics = ModelStatistics(latents=statistics)
    statistics.check_sinks(sinks_of(config, compressed, positions))
    if progress:
        print(f"factorizing {len(compressed) + len(cross)} attention modules", flush=True)
    planned = plan_model(spec, compressed, statistics, config, positions)
    planned_cross: PlannedCross = []
    if spec.cross is not None:
        planned, planned_cross = with_cross_plan(planned, spec, cross, statistics, config)
    planned = replace(planned, plan=replace(planned.plan, calibrated_on=calibrated_on))
    convert_in_place(
        model,
        compressed,
        [result.factors for result in planned.latents],
        planned.plan,
        keep_source=config.store_original_weights,
        state_factors=planned.states,
        fitted_to=statistics.sequences if decouples else (),
        progress=progress,
        cross=planned_cross,
    )
    forget_quantisation(model)
    del planned
    return_freed_memory()
    if statistics.held_out is not None:
        if progress:
            print("measuring the loss on held-out text", flush=True)
        attach_certificate(model, certify(model, statistics.held_out, self_check=self_check))
    if config.store_original_weights:
        remember_source_values(model)
    return plan_of(model)
