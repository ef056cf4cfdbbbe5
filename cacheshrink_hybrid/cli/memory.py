"""The program `memory`: bytes of live caches."""

from __future__ import annotations

import argparse
from typing import Any

from ..evaluation.memory import measure_cache_memory
from ..families import model_spec
from ..model.attached_plan import is_converted, plan_of
from ..plan import exact_tokens_line
from ..text_tables import fitting_table
from .arguments import load_given
from .report import byte_columns, write_json


def run(given: argparse.Namespace) -> int:
    results: dict[str, Any] = {}
    rows, planned, exact = [], [], []
    for name in given.models:
        model, _ = load_given(given, name, tokenizer=False)
        measured = measure_cache_memory(model, given.lengths, given.batch_size)
        plan = plan_of(model) if is_converted(model) else None
        columns = byte_columns(model_spec(model.config), plan)
        results[name] = measured | {"planned": columns}
        planned.append({"model": name} | columns)
        if plan is not None and plan.exact_bytes(1):
            exact.append(f"{name}: {exact_tokens_line(plan)}")
        rows += [
            _row(name, length, values) for length, values in measured["per_sequence_length"].items()
        ]
    print("Live bytes, in the dtype of each model; ratios count what is not coded at 16 bits:")
    print(fitting_table(rows))
    print("\nAs planned, at 16 bits:")
    print("\n".join([fitting_table(planned), *exact]))
    if given.json is not None:
        write_json(given.json, {"program": "memory", "models": results})
    return 0


def _row(name: str, length: int, values: dict[str, Any]) -> dict[str, Any]:
    """One line of the table; JSON has everything."""
    return {
        "model": name,
        "tokens": length,
        "KV": values["live_bytes"],
        "expected": values["expected_bytes"],
        "exact": values["exact_bytes"],
        "KV ratio": values["ratio"],
        "states": values["state_bytes"],
        "state ratio": values["state_ratio"],
        "both": values["total_bytes"],
        "ratio": values["total_ratio"],
        "pooled": values["pooled_bytes"],
    }
