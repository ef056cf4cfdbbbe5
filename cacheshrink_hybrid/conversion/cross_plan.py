"""The plan of a decoder that reads an encoder's output: one for its own tokens, one for that."""

from __future__ import annotations

from dataclasses import replace

from ..config import CompressionConfig
from ..latents.attention.parts import AttentionParts
from ..latents.fit.factors import LatentFactors
from ..spec import ModelSpec
from .planning import PlannedModel, plan_model
from .statistics import ModelStatistics

PlannedCross = list[tuple[AttentionParts, LatentFactors]]
"""Modules of cross-attention, and what is put into them."""


def without_exact_tokens(config: CompressionConfig) -> CompressionConfig:
    """The settings of cross-attention: no vector of an encoder's output is the first or the latest,
    so that none stays exact."""
    return replace(config, exact_sinks=0, exact_window=0)


def with_cross_plan(
    planned: PlannedModel,
    spec: ModelSpec,
    parts: list[AttentionParts],
    statistics: ModelStatistics,
    config: CompressionConfig,
) -> tuple[PlannedModel, PlannedCross]:
    """A decoder's plan with that of its cross-attention, which has the same ratio of its own bytes:
    how long texts and encoders' outputs are beside each other is not known.

    Args:
        planned: of the decoder's own tokens.
        parts: modules of cross-attention.
        statistics: of the whole model.
    """
    assert spec.cross is not None and statistics.cross is not None
    cross = plan_model(spec.cross, parts, statistics.cross, without_exact_tokens(config))
    found = [(part, result.factors) for part, result in zip(parts, cross.latents, strict=True)]
    plan = replace(planned.plan, cross=cross.plan)
    return replace(planned, plan=plan), found
