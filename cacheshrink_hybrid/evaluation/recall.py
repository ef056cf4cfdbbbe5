"""Recall by distance: can a model still say what it has read so many tokens ago?

Perplexity on running text hardly asks for memory, so a cache can be damaged without showing there;
recall breaks first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.exercises import RECALL_KINDS, RecallExercise, RecallKind, recall_exercises
from ..errors import ConfigError
from .cached_forward import cached_logits
from .defaults import DEFAULT_CHUNK, DEFAULT_DISTANCES


@torch.no_grad()
def measure_recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    distances: Sequence[int] = DEFAULT_DISTANCES,
    *,
    kinds: Sequence[RecallKind] = RECALL_KINDS,
    num_exercises: int = 16,
    filler: Sequence[str] | None = None,
    chunk_length: int = DEFAULT_CHUNK,
    seed: int = 0,
    progress: bool = False,
) -> dict[int, dict[str, float]]:
    """Share of remembered tokens that the model predicts, through a live cache.

    Args:
        model: converted or not.
        distances: tokens between what is shown and its return.
        kinds: exercises of `recall.RECALL_KINDS`.
        num_exercises: exercises per kind and distance.
        filler: text between showing and return; None for documentation of Python's library.
        chunk_length: tokens per forward pass.

    Returns:
        For each distance, the accuracy by kind and their mean as `"mean"`, between 0 and 1.

    Raises:
        ConfigError: an unknown kind, or exercises longer than the model's positions.
    """
    unknown = sorted(set(kinds) - set(RECALL_KINDS))
    if unknown or not kinds:
        raise ConfigError(f"kinds {unknown or kinds} are unknown; choose from {RECALL_KINDS}")
    limit = getattr(model.config, "max_position_embeddings", None)
    results: dict[int, dict[str, float]] = {}
    for distance in tqdm(distances, desc="recall", unit="distance", disable=not progress):
        by_kind: dict[str, float] = {}
        for kind in kinds:
            exercises = recall_exercises(
                tokenizer,
                kind=kind,
                distance=distance,
                count=num_exercises,
                seed=seed,
                filler=filler,
            )
            longest = max(len(exercise.token_ids) for exercise in exercises)
            if limit is not None and longest > limit:
                raise ConfigError(
                    f"distance {distance} makes exercises of {longest} tokens, the model has "
                    f"{limit} positions; choose a shorter distance"
                )
            hits = [_score(model, exercise, chunk_length) for exercise in exercises]
            by_kind[kind] = sum(h for h, _ in hits) / sum(n for _, n in hits)
        results[distance] = {**by_kind, "mean": sum(by_kind.values()) / len(by_kind)}
    return results


def _score(model: PreTrainedModel, exercise: RecallExercise, chunk_length: int) -> tuple[int, int]:
    """(recalled tokens, tokens asked for)."""
    ids = torch.tensor(exercise.token_ids)[None]
    predicted = [
        logits.argmax(-1).cpu() for _, logits in cached_logits(model, ids[:, :-1], chunk_length)
    ]
    positions = torch.tensor(exercise.answer_positions)
    hits = torch.cat(predicted, dim=1)[0, positions - 1] == ids[0, positions]
    return int(hits.sum()), len(positions)
