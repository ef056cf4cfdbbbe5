"""The program `perplexity`: through the cache, for one or more models."""

from __future__ import annotations

import argparse
from typing import Any

from ..evaluation.perplexity import measure_perplexity
from ..families import model_spec
from ..latent_model import is_converted, plan_of
from ..plan import format_table
from .arguments import load_given, read_texts
from .report import byte_columns, plot_tradeoff, write_json


def run(given: argparse.Namespace) -> int:
    texts = read_texts(given)
    records: list[dict[str, Any]] = []
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
            {"model": name}
            | byte_columns(model_spec(model.config), plan)
            | {
                "ratio": plan.compression_ratio if plan else 1.0,
                "state_ratio": plan.state_ratio if plan else 1.0,
                "perplexity": result.perplexity,
                "change_percent": 0.0,
                "tokens": result.num_tokens,
                "by_position": [
                    {"from": first, "to": end, "tokens": tokens, "perplexity": value}
                    for first, end, tokens, value in result.by_position
                ],
            }
        )
        base = records[0]["perplexity"]
        records[-1]["change_percent"] = 100 * (result.perplexity / base - 1)
    print(format_table([{k: v for k, v in r.items() if k != "by_position"} for r in records]))
    if given.by_position:
        rows = [
            {"model": r["model"]}
            | {f"{p['from']}..{p['to'] - 1}": p["perplexity"] for p in r["by_position"]}
            for r in records
        ]
        print(format_table(rows))
    if given.json is not None:
        write_json(given.json, {"program": "perplexity", "models": records})
    if given.plot is not None:
        plot_tradeoff(given.plot, records, "Perplexity against cache size")
    return 0
