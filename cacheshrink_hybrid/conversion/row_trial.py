"""Trying rows of the table of families on a model that has none.

A small model of the same config, with weights that make attention matter, is taken apart as each
candidate says, and every layer is rebuilt at full rank and compared with its source
(`self_check`). Nothing that the trial says is believed by a conversion: the row must be written
into the table, with its tests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from ..errors import CacheShrinkError, SelfCheckError, UnsupportedModelError
from ..families import FAMILIES, Family, model_spec, read_attention
from ..families.row_candidates import Candidate, candidates
from .self_check import FOREIGN_FAULTS, check_layers
from .trial_model import small_model, told

MOST_SECONDS = 60
"""After which no further row is tried."""


@dataclass(frozen=True, slots=True)
class TriedRow:
    """A candidate, and what came of it.

    Attributes:
        difference: of the layer that differs most, over the size of its output; None where nothing
            could be compared.
        fault: why it does not fit; None where it computes what the source computes.
    """

    candidate: Candidate
    difference: float | None
    fault: str | None


@dataclass(frozen=True, slots=True)
class RowTrial:
    """All rows that were tried, and the config of the small model they were tried on.

    Attributes:
        num_left: further rows for which there was no time.
    """

    config: PretrainedConfig
    tried: tuple[TriedRow, ...]
    num_left: int = 0

    @property
    def fitting(self) -> TriedRow | None:
        return next((row for row in self.tried if row.fault is None), None)

    @property
    def nearest(self) -> TriedRow:
        """The row that fits, else the one with the smallest difference."""
        by_difference = [row for row in self.tried if row.difference is not None]
        if not by_difference:
            return self.tried[0]
        return self.fitting or min(by_difference, key=lambda row: row.difference or 0.0)


def try_rows(
    config: PretrainedConfig, *, seed: int = 0, trust_remote_code: bool = False
) -> RowTrial:
    """Try the rows that a config's model may have, until one fits.

    Args:
        config: of a causal language model whose type the table of families does not have.
        seed: of weights and tokens.

    Raises:
        UnsupportedModelError: transformers has no causal model of the config, it is too large even
            with few layers, or its attention is built as no row can say.
    """
    if config.is_heterogeneous:
        raise UnsupportedModelError(
            f"layers of this {config.model_type} model have sizes of their own "
            "(per_layer_config), and rows are guessed of models whose layers are alike; write its "
            "row by the recipe 'A model family' in CONTRIBUTING.md, as that of gemma4_text"
        )
    end = time.monotonic() + MOST_SECONDS
    model = small_model(config, seed=seed, trust_remote_code=trust_remote_code)
    tried: list[TriedRow] = []
    guessed = _guessed(model)
    while guessed and (not tried or (tried[-1].fault and time.monotonic() < end)):
        tried.append(_tried(model, guessed.pop(0), seed))
    return RowTrial(model.config, tuple(tried), len(guessed) if tried[-1].fault else 0)


def _guessed(model: PreTrainedModel) -> list[Candidate]:
    refused = f"model_type={model.config.model_type!r} is not supported, and no row can be guessed"
    try:
        return list(candidates(model))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{refused}: {error}") from error
    except FOREIGN_FAULTS as error:
        raise UnsupportedModelError(f"{refused} of its config: {told(error)}") from error


def _tried(model: PreTrainedModel, candidate: Candidate, seed: int) -> TriedRow:
    try:
        with _in_table(candidate.family):
            parts = read_attention(model, model_spec(model.config))
            difference = check_layers(model, parts, (), seed=seed)
    except SelfCheckError as error:
        return TriedRow(candidate, error.difference, str(error).partition(". The model does")[0])
    except CacheShrinkError as error:
        return TriedRow(candidate, None, str(error))
    except Exception as error:  # of any class: it is transformers that runs the model
        return TriedRow(candidate, None, told(error))
    return TriedRow(candidate, difference, None)


@contextmanager
def _in_table(family: Family) -> Iterator[None]:
    """Within this context the table has this row."""
    known = FAMILIES.get(family.model_type)
    FAMILIES[family.model_type] = family
    try:
        yield
    finally:
        if known is None:
            del FAMILIES[family.model_type]
        else:
            FAMILIES[family.model_type] = known
