"""The program `sweep`: perplexity against stored bytes."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..calibration.text import calibration_sequences, load_texts
from ..config import CompressionConfig
from ..conversion.convert import convert_model
from ..conversion.refusals import check_convertible
from ..conversion.statistics import SharedStatistics
from ..errors import PlanError
from ..evaluation.perplexity import measure_perplexity
from ..evaluation.uniform_kv import UniformKVCache, uniform_kv_bytes_per_token
from ..spec import ModelSpec
from ..text_tables import fitting_table, format_table
from ..writing import write_text
from .arguments import load_given, read_texts, source_spec
from .flags import bits as as_bits
from .plots import plot_front, short_name
from .report import byte_columns, size_columns, size_key, write_json


def run(given: argparse.Namespace) -> int:
    spec = source_spec(given.model, trust_remote_code=given.trust_remote_code)
    _check_ratios(given, spec)
    texts = read_texts(given)
    source, tokenizer = load_given(given, given.model)

    def perplexity(model, new_cache=None) -> float:
        return measure_perplexity(
            model,
            tokenizer,
            texts,
            max_length=given.max_length,
            batch_size=given.batch_size,
            new_cache=new_cache,
        ).perplexity

    records = [_record("source", byte_columns(spec, None), perplexity(source))]
    for bits in (8, 4) if spec.attention_layers else ():
        per_token = uniform_kv_bytes_per_token(source, bits)
        value = perplexity(source, lambda bits=bits: UniformKVCache(source, bits))
        columns = size_columns(spec, per_token, spec.bytes_per_sequence)
        records.append(_record(f"int{bits} KV", columns, value))

    calibration = load_texts(None, given.calibration, num_samples=given.calibration_samples)
    for metric in given.metrics:
        shared = CompressionConfig(
            metric=metric,
            state_ratio=max(given.state_ratios),
            num_calibration_samples=given.calibration_samples,
            max_calibration_length=given.max_length,
            seed=given.seed,
        )
        sequences = calibration_sequences(tokenizer, calibration, shared, model=source)
        statistics = SharedStatistics(source, shared, sequences, progress=True)
        for series, label, settings in _combinations(given, spec):
            config = CompressionConfig(
                metric=metric,
                max_calibration_length=given.max_length,
                seed=given.seed,
                **settings,
            )
            model = copy.deepcopy(source)
            try:
                plan = convert_model(model, config, statistics=statistics.serving(config))
            except PlanError as error:
                print(f"{series} {metric} at {label}: {error}")
                continue
            name = f"{series} {metric}"
            record = _record(name, byte_columns(spec, plan), perplexity(model), f"{name} {label}")
            records.append(record)
            _write(given.output, records)  # what is measured is kept, whatever happens after it
            print(
                f"{record['model']}: {record['bytes_per_token']} KV bytes per token, "
                f"{record['state_bytes']} of state, perplexity {record['perplexity']:.4g}",
                flush=True,
            )
    print("\n" + fitting_table(_write(given.output, records)))
    plot_front(
        given.output / "sweep.png",
        records,
        f"{short_name(given.model)}: perplexity against cache size",
    )
    return 0


def _write(output: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the points so far with the source and with each other, and write them as a table and
    as JSON; returns the table's records."""
    base, size = records[0], size_key(records)
    for record in records:
        record["ratio"] = base[size] / record[size]
        record["change_percent"] = 100 * (record["perplexity"] / base["perplexity"] - 1)
        record["front"] = not any(_beats(other, record, size) for other in records)
    shown = [{k: v for k, v in record.items() if k != "series"} for record in records]
    write_text(output / "sweep.md", format_table(shown) + "\n")
    write_json(output / "sweep.json", {"program": "sweep", "points": records})
    return shown


def _check_ratios(given: argparse.Namespace, spec: ModelSpec) -> None:
    """Refuse ratios that no combination with the other settings can have."""
    reached: set[tuple[str, float]] = set()
    refused: dict[tuple[str, float], PlanError] = {}
    for _, label, settings in _combinations(given, spec):
        point = (label, settings["state_ratio"])
        try:
            check_convertible(spec, CompressionConfig(**settings))
        except PlanError as error:
            refused.setdefault(point, error)
        else:
            reached.add(point)
    never = dict.fromkeys(str(error) for point, error in refused.items() if point not in reached)
    if never:
        raise PlanError("; ".join(never))


def _combinations(
    given: argparse.Namespace, spec: ModelSpec
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(series, label within it, settings) of every point; models without attention have states
    alone."""
    if not spec.attention_layers:
        for ratio in given.state_ratios:
            yield "states", f"{ratio:g}x", {"state_ratio": ratio}
        return
    for method in given.methods:
        for bits in given.bits:
            for state_ratio in given.state_ratios:
                series = f"{method} " + ("coded" if bits == "auto" else f"{bits} bit")
                if state_ratio != 1.0:
                    series += f", states {state_ratio:g}x,"
                for ratio in given.ratios:
                    settings = {
                        "compression_ratio": ratio,
                        "compression_method": method,
                        "cache_bits": as_bits(bits),
                        "state_ratio": state_ratio,
                    }
                    yield series, f"{ratio:g}x", settings


def _record(
    series: str, columns: dict[str, int], perplexity: float, label: str | None = None
) -> dict[str, Any]:
    return {
        "model": label or series,
        "series": series,
        **columns,
        "perplexity": perplexity,
    }


def _beats(a: dict[str, Any], b: dict[str, Any], size: str) -> bool:
    """Whether a is no worse than b in bytes and in perplexity, and better in one of them."""
    keys = (size, "perplexity")
    return all(a[k] <= b[k] for k in keys) and any(a[k] < b[k] for k in keys)
