"""Measure perplexity through the cache that generation uses, for one or more models.

    cacheshrink-hybrid perplexity MODEL [MODEL ...] --text FILE --json out.json --plot out.png

Prints a table (bytes of keys and values per token and of states per sequence, both together at 1k,
8k and 32k tokens, ratios, perplexity, change against the first model); --by-position adds
perplexity by position in the window. The plot shows perplexity against bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.cached_forward import DEFAULT_CHUNK
from ..evaluation.perplexity import measure_perplexity
from ..families import model_spec
from ..latent_model import is_converted, plan_of
from ..plan import format_table
from .arguments import add_model_arguments, add_text_arguments, load_given, read_texts
from .report import byte_columns, plot_tradeoff, write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid perplexity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, several=True)
    add_text_arguments(parser)
    parser.add_argument("--max-length", type=int, default=512, help="tokens per window")
    parser.add_argument("--stride", type=int, default=None, help="tokens between windows")
    parser.add_argument("--batch-size", type=int, default=1, help="windows at once")
    parser.add_argument("--chunk-length", type=int, default=DEFAULT_CHUNK, help="tokens per pass")
    parser.add_argument("--by-position", action="store_true", help="also by position")
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    parser.add_argument("--plot", type=Path, default=None, help="write the plot here")
    given = parser.parse_args(argv)
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
