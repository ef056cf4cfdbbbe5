"""The program `perplexity`: through the cache, for one or more models."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from transformers import PreTrainedModel

from ..errors import CacheShrinkWarning, ConfigError, UnsupportedModelError
from ..evaluation.perplexity import measure_perplexity
from ..families import layout_spec
from ..model.attached_plan import is_converted, plan_of
from ..plan import CompressionPlan
from ..text_tables import fitting_table
from .arguments import load_given, read_texts
from .plots import plot_tradeoff
from .report import byte_columns, write_json

FEW_TOKENS = 1000
"""Predicted tokens below which a perplexity is little to go by."""


def run(given: argparse.Namespace) -> int:
    texts = read_texts(given)
    records: list[dict[str, Any]] = []
    vocabulary: dict[str, int] = {}
    for name in given.models:
        model, tokenizer = load_given(given, name)
        result = measure_perplexity(
            model,
            tokenizer,
            texts,
            max_length=given.max_length,
            stride=given.stride,
            batch_size=given.batch_size,
            chunk_length=given.chunk_length,
            progress=True,
        )
        plan = plan_of(model) if is_converted(model) else None
        records.append(
            {
                "model": name,
                "perplexity": result.perplexity,
                "change_percent": None,
                "tokens": result.num_tokens,
                "ratio": plan.compression_ratio if plan else 1.0,
                "state_ratio": plan.state_ratio if plan else 1.0,
            }
            | _sizes(name, model, plan)
            | {
                "by_position": [
                    {"from": first, "to": end, "tokens": tokens, "perplexity": value}
                    for first, end, tokens, value in result.by_position
                ]
            }
        )
        vocabulary = vocabulary or tokenizer.get_vocab()
        if tokenizer.get_vocab() == vocabulary:
            base = records[0]["perplexity"]
            records[-1]["change_percent"] = 100 * (result.perplexity / base - 1)
        else:
            warnings.warn(
                f"{name} has another tokenizer than {given.models[0]}: their perplexities are per "
                "token of their own, and do not compare",
                CacheShrinkWarning,
                stacklevel=2,
            )
    fewest = min(record["tokens"] for record in records)
    if fewest < FEW_TOKENS:
        warnings.warn(
            f"only {fewest} tokens were predicted, too few to go by; give at least {FEW_TOKENS:,}",
            CacheShrinkWarning,
            stacklevel=2,
        )
    print(fitting_table([{k: v for k, v in r.items() if k != "by_position"} for r in records]))
    if given.by_position:
        rows = [
            {"model": r["model"]}
            | {f"{p['from']}..{p['to'] - 1}": p["perplexity"] for p in r["by_position"]}
            for r in records
        ]
        print(fitting_table(rows))
    if given.json is not None:
        write_json(given.json, {"program": "perplexity", "models": records})
    if given.plot is not None:
        shown = [r for r in records if r["change_percent"] is not None and "bytes_per_token" in r]
        if not shown:
            raise ConfigError(
                f"nothing to plot in {given.plot}: no model has the tokenizer of the first, and "
                "known bytes; leave --plot out"
            )
        plot_tradeoff(
            given.plot,
            shown,
            "Perplexity against cache size",
            joined=False,
            left_out=[record["model"] for record in records if record not in shown],
        )
    return 0


def _sizes(name: str, model: PreTrainedModel, plan: CompressionPlan | None) -> dict[str, int]:
    """The columns of bytes; none for a family of which it is not known what it caches."""
    try:
        return byte_columns(layout_spec(model.config), plan)
    except UnsupportedModelError as error:
        warnings.warn(f"no bytes are shown of {name}: {error}", CacheShrinkWarning, stacklevel=3)
        return {}
