"""Fill real caches and count their bytes (keys and values, states, both), next to the plan's.

A second table has what the plan says at 1k, 8k and 32k tokens, at 16 bits for what is not coded.

cacheshrink-hybrid memory MODEL [MODEL ...] --lengths 128 512 1024 --json out.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.memory import DEFAULT_LENGTHS, measure_cache_memory
from ..families import model_spec
from ..latent_model import is_converted, plan_of
from ..plan import format_table
from .arguments import add_model_arguments, load_given
from .report import byte_columns, write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, several=True)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(DEFAULT_LENGTHS))
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    given = parser.parse_args(argv)
    results: dict[str, Any] = {}
    rows, planned = [], []
    for name in given.models:
        model, _ = load_given(given, name)
        measured = measure_cache_memory(model, given.lengths, given.batch_size)
        plan = plan_of(model) if is_converted(model) else None
        columns = byte_columns(model_spec(model.config), plan)
        results[name] = measured | {"planned": columns}
        planned.append({"model": name} | columns)
        rows += [
            {"model": name, "tokens": length, **values}
            for length, values in measured["per_sequence_length"].items()
        ]
    print(format_table(rows))
    print(format_table(planned))
    if given.json is not None:
        write_json(given.json, {"program": "memory", "models": results})
    return 0
