"""What calibration finds in one model, for its latents and its states, shown the same text."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel

from ..calibration.amount import positions_of, warn_of_little_text
from ..calibration.calibrate import LatentStatistics, calibrate, decoder_layers, weight_statistics
from ..calibration.sequences import CalibrationSequences
from ..config import CompressionConfig
from ..errors import CacheShrinkWarning, ConfigError, PlanError
from ..families import check_shared_weights, model_spec, read_attention
from ..freed_memory import return_freed_memory
from ..latents.attention.parts import AttentionParts
from ..latents.fit.held_out import HELD_OUT_SHARE, HeldOutText, held_out_text, split_sequences
from ..latents.fit.metrics import Labels
from ..model.adapters import refuse_adapters
from ..spec import ModelSpec
from ..states.fit.observe import StateCalibration, StateStatistics
from ..states.kinds import compressible_layers
from .exact_counts import sinks_of


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What calibration found in one model: per attention module, and per recurrent layer.

    Attributes:
        held_out: text kept from the statistics, and what was found on it; None without.
        sinks: first tokens of a sequence that each attention module reads exactly, which were left
            out; None where nothing is said of them.
        sequences: that they are of, token ids (1, T) each.
    """

    latents: list[LatentStatistics]
    states: list[StateStatistics] | None = None
    held_out: HeldOutText | None = None
    sinks: tuple[int, ...] | None = None
    sequences: Sequence[Tensor] = ()

    def check_sinks(self, due: tuple[int, ...]) -> None:
        """Refuse other sinks than those of a conversion.

        Raises:
            ConfigError: for such sinks.
        """
        if self.sinks is not None and self.sinks != due:
            raise ConfigError(
                f"statistics that leave out the first {max(self.sinks)} tokens of a sequence, "
                f"which attention reads exactly, do not serve a conversion with exact_sinks="
                f"{max(due)}; take statistics with a CompressionConfig of the same exact_sinks"
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
    parts = compressed_parts(model, spec, config)
    return statistics_of(model, spec, parts, config, sequences, progress)


class SharedStatistics:
    """Statistics of one model for conversions that do not all read as many first tokens exactly:
    taken once for each number of them.

    Args:
        config: metric, amount of text and seed of all; states are calibrated if it changes them.
        sequences: calibration token ids, (1, T) each, or `CalibrationSequences`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: CompressionConfig,
        sequences: Iterable[Tensor],
        *,
        progress: bool = False,
    ) -> None:
        self._model, self._config = model, config
        self._sequences = CalibrationSequences.of(sequences)
        self._progress = progress
        self._found: dict[tuple[int, ...], ModelStatistics] = {}

    def serving(self, config: CompressionConfig) -> ModelStatistics:
        """Those that a conversion with `config` takes."""
        model, spec = self._model, model_spec(self._model.config)
        parts = compressed_parts(model, spec, config)
        sinks = sinks_of(config, parts, positions_of(model.config))
        if sinks not in self._found:
            taken = replace(
                self._config, exact_sinks=max(sinks, default=0), cache_bits=config.cache_bits
            )
            self._found[sinks] = model_statistics(
                model, taken, self._sequences, progress=self._progress
            )
        return self._found[sinks]


def compressed_parts(
    model: PreTrainedModel, spec: ModelSpec, config: CompressionConfig
) -> list[AttentionParts]:
    """The attention modules that are not left as they are, taken apart."""
    parts = read_attention(model, spec)
    check_shared_weights(parts)
    if config.xkv_skip_early_layers >= max(1, len(parts)):
        raise PlanError(
            f"xkv_skip_early_layers={config.xkv_skip_early_layers} leaves none of the "
            f"{len(parts)} attention layers to share a basis; skip fewer"
        )
    return parts[config.xkv_skip_early_layers :] if config.keep_early_layers_original else parts


def statistics_of(
    model: PreTrainedModel,
    spec: ModelSpec,
    parts: list[AttentionParts],
    config: CompressionConfig,
    sequences: Iterable[Tensor],
    progress: bool,
) -> ModelStatistics:
    """What `config` needs of these attention modules, and of states if it changes them."""
    if not config.reads_text:
        return ModelStatistics(latents=[weight_statistics(part) for part in parts])
    split = config.latent_kind is not None and config.latent_kind.decouples
    watched = config.changes_states and bool(compressible_layers(spec))
    states = StateCalibration(model, spec, config.metric) if watched else None
    positions = positions_of(model.config)
    sinks = sinks_of(config, parts, positions)
    if parts:
        sequences = CalibrationSequences.of(sequences)
        fitted, held_out = split_sequences(sequences.texts)
        fitted += sequences.exercises
        if not held_out:
            warnings.warn(
                f"the loss is not measured: of {len(sequences.texts)} sequences of calibration "
                f"text none is held out, as that takes {HELD_OUT_SHARE}; give more of them "
                "(calibration_texts, num_calibration_samples), or shorter ones "
                "(max_calibration_length)",
                CacheShrinkWarning,
                stacklevel=3,
            )
    else:
        fitted, held_out = list(sequences), []
    # Of others nothing can be predicted: all is exact, or there is no next token.
    held_out = [ids for ids in held_out if ids.shape[1] > max((1, *sinks))]
    latents = calibrate(
        model,
        parts,
        fitted,
        metric=config.metric,
        labels=Labels(config.fisher_labels, config.seed),
        sinks=sinks,
        split=split,
        states=states,
        progress=progress,
    )
    warn_of_little_text(latents)
    return_freed_memory()
    text = None
    if held_out:
        text = held_out_text(
            model,
            decoder_layers(model),
            parts,
            held_out,
            metric=config.metric,
            labels=Labels(config.fisher_labels, config.seed),
            sinks=sinks,
            split=split,
        )
        return_freed_memory()
    return ModelStatistics(
        latents=latents,
        states=None if states is None else states.statistics(),
        held_out=text,
        sinks=sinks,
        sequences=fitted,
    )
