"""Trying rows of the table of families on a model that has none.

A small model of the same config, with weights that make attention matter, is taken apart as each
candidate says, and every layer is rebuilt at full rank and compared with its source
(`self_check`). Nothing that the trial says is believed by a conversion: the row must be written
into the table, with its tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..errors import CacheShrinkError, SelfCheckError, UnsupportedModelError
from ..families import FAMILIES, Family, model_spec, read_attention
from ..families.row_candidates import Candidate, candidates
from .self_check import FOREIGN_FAULTS, check_layers

VOCABULARY, WIDTH, EXPERTS = 256, 128, 8
"""Largest vocabulary, inner width of an MLP and number of experts of a small model."""
MOST_NUMBERS = 2**31
"""Parameters of the largest small model, 8 GiB in float32."""
INNER = re.compile(r"(\w*intermediate_size|ffn_dim|ffn_hidden_size|n_inner|inner_dim)\w*")
ROUTED = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts")
GROUPS = ("n_group", "topk_group")
SPECIAL = re.compile(r"\w*_token_id")
GAIN = 2.0
"""Of weights of attention over those that keep the size of their inputs: scores differ then."""
NOISE = 0.2
"""Of norms and biases, whose neutral values would hide where they are applied."""


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
    """All rows that were tried, and the config of the small model they were tried on."""

    config: PretrainedConfig
    tried: tuple[TriedRow, ...]

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
    model = small_model(config, seed=seed, trust_remote_code=trust_remote_code)
    tried: list[TriedRow] = []
    for candidate in candidates(model):
        tried.append(_tried(model, candidate, seed))
        if tried[-1].fault is None:
            break
    return RowTrial(model.config, tuple(tried))


def _tried(model: PreTrainedModel, candidate: Candidate, seed: int) -> TriedRow:
    try:
        with _in_table(candidate.family):
            parts = read_attention(model, model_spec(model.config))
            difference = check_layers(model, parts, (), seed=seed)
    except SelfCheckError as error:
        return TriedRow(candidate, error.difference, str(error).partition(". The model does")[0])
    except CacheShrinkError as error:
        return TriedRow(candidate, None, str(error))
    except FOREIGN_FAULTS as error:
        return TriedRow(candidate, None, f"{type(error).__name__}: {error}")
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


def small_model(
    config: PretrainedConfig, *, seed: int = 0, trust_remote_code: bool = False
) -> PreTrainedModel:
    """A model of few layers, words and experts that is otherwise like those of `config`, with
    random weights in float32, none of which is neutral.

    Raises:
        UnsupportedModelError: see `try_rows`.
    """
    faults: list[str] = []
    make: Any = AutoModelForCausalLM.from_config
    given = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    for narrow in (True, False):
        try:
            small = _small_config(config, narrow=narrow)
            with torch.device("meta"):
                size = sum(p.numel() for p in make(small, **given).parameters())
            if size <= MOST_NUMBERS:
                torch.manual_seed(seed)
                return _shaken(make(small, **given).eval())
            faults.append(
                f"{small.num_hidden_layers} layers have {size:,} parameters, and at most "
                f"{MOST_NUMBERS:,} are tried"
            )
        except FOREIGN_FAULTS as error:
            faults.append(f"{type(error).__name__}: {error}")
    raise UnsupportedModelError(
        f"no small causal model of model_type={config.model_type!r} can be made: {faults[0]}; give "
        "a config.json of a smaller model of this type"
    )


def _small_config(config: PretrainedConfig, *, narrow: bool) -> PretrainedConfig:
    """The first layers, at least two, until every kind of layer has come; a small vocabulary, and,
    if `narrow`, few experts and narrow MLPs."""
    values = config.to_dict()
    depth = config.num_hidden_layers
    kinds = getattr(config, "layer_types", None) or [""] * depth
    kept = max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))
    for name, value in values.items():
        if isinstance(value, list) and len(value) == depth:
            values[name] = value[:kept]
        elif SPECIAL.fullmatch(name):
            values[name] = [0] if isinstance(value, list) else value and 0
        elif not narrow or not isinstance(value, int) or isinstance(value, bool):
            continue
        elif INNER.fullmatch(name):
            values[name] = min(value, WIDTH)
        elif ROUTED.fullmatch(name):
            values[name] = min(value, EXPERTS)
        elif name in GROUPS:
            values[name] = 1
    values["num_hidden_layers"] = min(kept, depth)
    values["vocab_size"] = min(config.vocab_size, VOCABULARY)
    return type(config).from_dict(values)


def _shaken(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            inside = "attn" in name.lower() or "attention" in name.lower()
            if parameter.ndim == 1:
                parameter.add_(NOISE * torch.randn_like(parameter))
            elif inside and parameter.ndim == 2:
                nn.init.normal_(parameter, std=GAIN / parameter.shape[1] ** 0.5)
    return model
