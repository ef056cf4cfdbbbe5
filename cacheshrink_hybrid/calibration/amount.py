"""How much calibration text is enough, and how long its sequences may be."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from transformers import PretrainedConfig, PreTrainedModel

from ..config import CompressionConfig
from ..errors import CacheShrinkWarning
from ..latents.fit.statistics import LatentStatistics

MIN_TOKENS_PER_CHANNEL = 16
"""Calibration tokens per number that a layer caches, below which a warning says so: covariances of
fewer are mostly noise."""


def warn_of_little_text(latents: Sequence[LatentStatistics]) -> None:
    """Warn of statistics from fewer tokens than their covariances take."""
    short = [stats for stats in latents if stats.num_tokens < _enough_tokens(stats)]
    if short:
        widest = max(short, key=_enough_tokens)
        warnings.warn(
            f"{widest.num_tokens:,} tokens of calibration are few for layers that cache "
            f"{len(widest.mean)} numbers per token: what is lost may be several times what more "
            f"text would lose; give {_enough_tokens(widest):,} or more, "
            f"{MIN_TOKENS_PER_CHANNEL} per number",
            CacheShrinkWarning,
            stacklevel=3,
        )


def _enough_tokens(statistics: LatentStatistics) -> int:
    return MIN_TOKENS_PER_CHANNEL * len(statistics.mean)


def positions_of(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for; None where nothing says so."""
    text = config.get_text_config(decoder=True)
    # Decoders of speech name them apart from those of their encoder.
    found = getattr(text, "max_position_embeddings", None)
    return getattr(text, "max_target_positions", None) if found is None else found


def within_positions(config: CompressionConfig, model: PreTrainedModel) -> CompressionConfig:
    """The settings with calibration sequences that the model has positions for."""
    limit = positions_of(model.config)
    length = config.max_calibration_length
    if limit is None or length <= limit:
        return config
    if length > CompressionConfig().max_calibration_length:
        warnings.warn(
            f"max_calibration_length={length} is beyond the {limit} positions of this model; "
            f"sequences are cut to {limit} tokens",
            CacheShrinkWarning,
            stacklevel=3,
        )
    return replace(config, max_calibration_length=limit)
