"""The program `states`: quality against bytes of recurrent state, and drift."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..calibration.text import calibration_sequences, load_texts
from ..config import CompressionConfig
from ..conversion.convert import convert_model
from ..conversion.statistics import model_statistics
from ..errors import ConfigError, PlanError
from ..evaluation.cached_forward import cached_logits
from ..evaluation.defaults import DEFAULT_CHUNK
from ..evaluation.perplexity import measure_perplexity
from ..evaluation.recall import measure_recall
from ..model.attached_plan import plan_of, set_state_plans
from ..spec import ModelSpec
from ..text_tables import fitting_table, format_table
from ..writing import write_text
from .arguments import check_points, kv_ratio, load_given, read_texts, source_spec
from .parsers.states import DRIFT_STRETCH, point_settings
from .report import write_json

STEADY = 512
"""Positions from which on states count as full."""


def run(given: argparse.Namespace) -> int:
    settings = [point_settings(point) for point in given.points]
    spec = source_spec(given.model, trust_remote_code=given.trust_remote_code)
    configs = _configs(given, settings, spec)
    check_points(configs, spec)
    texts = [text[: given.max_chars] for text in read_texts(given)]
    source, tokenizer = load_given(given, given.model)
    source = source.float()
    stretch = _stretch(tokenizer, texts, given.drift) if given.drift else None

    def measured(model: PreTrainedModel) -> dict[str, Any]:
        result = measure_perplexity(
            model, tokenizer, texts, max_length=given.max_length, batch_size=given.batch_size
        )
        record: dict[str, Any] = {"perplexity": result.perplexity}
        if given.max_length > STEADY:
            record["beyond 512"] = math.exp(_mean_loss(result.by_position, STEADY))
        if given.distances:
            recall = measure_recall(
                model,
                tokenizer,
                given.distances,
                kinds=given.kinds,
                num_exercises=given.exercises,
                seed=given.seed,
            )
            for distance, accuracy in recall.items():
                record[f"recall {distance}"] = accuracy["mean"]
        return record

    calibrated = CompressionConfig(
        **kv_ratio(spec, 1.0),
        metric=given.metric,
        state_ratio=2.0,
        num_calibration_samples=given.calibration_samples,
        max_calibration_length=given.max_length,
        num_recall_samples=given.recall_samples,
        seed=given.seed,
    )
    calibration = load_texts(None, given.calibration, num_samples=given.calibration_samples)
    sequences = calibration_sequences(tokenizer, calibration, calibrated)
    statistics = model_statistics(source, calibrated, sequences, progress=True)
    records: list[dict[str, Any]] = [
        {"point": "source", "state bytes": spec.bytes_per_sequence} | measured(source)
    ]
    results: dict[str, Any] = {"program": "states", "arguments": _printable(given)}
    results["points"] = records
    _report(given.output, results)
    model = None
    for point, config in configs.items():
        candidate = copy.deepcopy(source)
        try:
            plan = convert_model(candidate, config, statistics=statistics)
        except PlanError as error:
            print(f"{point}: {error}", flush=True)
            continue
        model = candidate
        record = {
            "point": point,
            "state bytes": plan.state_bytes,
            "codes": " / ".join(state.codes for state in plan.states),
            "replay": plan.states[0].replay_length,
            "predicted %": 100 * sum(s.predicted_loss + s.rounding_loss for s in plan.states),
        }
        records.append(record | measured(model))
        _report(given.output, results)
    if stretch is not None and model is not None:
        results["drift"] = _drift(source, model, stretch)
        results["drift"]["point"] = records[-1]["point"]
        print(fitting_table(results["drift"]["stretches"]))
        write_json(given.output / "states.json", results)
    return 0


def _configs(
    given: argparse.Namespace, settings: Sequence[dict[str, Any]], spec: ModelSpec
) -> dict[str, CompressionConfig]:
    """The settings of every point, which leave keys and values as they are."""
    return {
        point: CompressionConfig(
            metric=given.metric, seed=given.seed, **kv_ratio(spec, 1.0), **setting
        )
        for point, setting in zip(given.points, settings, strict=True)
    }


def _report(output: Path, results: dict[str, Any]) -> None:
    """Print what there is so far, and write it."""
    base = results["points"][0]
    for record in results["points"]:
        record["ratio"] = base["state bytes"] / record["state bytes"]
        record["change %"] = 100 * (record["perplexity"] / base["perplexity"] - 1)
    table = format_table(
        [{k: v for k, v in record.items() if k != "codes"} for record in results["points"]]
    )
    print(table, flush=True)
    write_json(output / "states.json", results)
    write_text(output / "states.md", table + "\n")


def _printable(given: argparse.Namespace) -> dict[str, Any]:
    """The arguments as JSON has them; of files the names."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, Path):
            return value.name
        return value

    arguments = {name: plain(value) for name, value in vars(given).items()}
    return arguments | {name: Path(arguments[name]).name for name in ("model", "calibration")}


def _mean_loss(by_position: Sequence[tuple[int, int, int, float]], first: int) -> float:
    """Mean loss of predicted tokens at positions of at least `first`."""
    later = [(n, math.log(value)) for start, _, n, value in by_position if start >= first]
    tokens = sum(n for n, _ in later)
    return sum(n * loss for n, loss in later) / tokens if tokens else math.nan


def _stretch(tokenizer, texts: Sequence[str], num_tokens: int) -> torch.Tensor:
    """One sequence of `num_tokens` + 1 ids out of all texts."""
    ids = torch.cat([torch.tensor(tokenizer(text).input_ids) for text in texts])[: num_tokens + 1]
    if len(ids) <= num_tokens:
        raise ConfigError(f"the text has {len(ids)} tokens; --drift {num_tokens} needs more")
    return ids


def _uncoded(model: PreTrainedModel) -> PreTrainedModel:
    """A converted model with the same ranks and states in float32."""
    twin = copy.deepcopy(model)
    plan = plan_of(twin)
    states = tuple(
        replace(
            state,
            segments=tuple(replace(segment, code="float32") for segment in state.segments),
            replay_length=1,
        )
        for state in plan.states
    )
    set_state_plans(twin, states)
    return twin


@torch.no_grad()
def _drift(source, converted, ids: torch.Tensor) -> dict[str, Any]:
    """Perplexity per stretch of one long sequence, with states coded as in decoding."""
    num_stretches = (len(ids) - 1) // DRIFT_STRETCH
    losses = []
    for model in (source, _uncoded(converted), converted):
        total = torch.zeros(num_stretches, dtype=torch.float64)
        for start, logits in cached_logits(model, ids[None, :-1], DEFAULT_CHUNK):
            positions = torch.arange(start, start + logits.shape[1])
            loss = nn.functional.cross_entropy(
                logits[0].float(), ids[1 + positions].to(logits.device), reduction="none"
            )
            inside = positions // DRIFT_STRETCH < num_stretches
            total.index_add_(0, positions[inside] // DRIFT_STRETCH, loss.double().cpu()[inside])
        losses.append(total / DRIFT_STRETCH)
    changes = [
        100 * (math.exp(float(after - before)) - 1)
        for before, after in zip(*losses[1:], strict=True)
    ]
    quarter = max(1, num_stretches // 4)
    return {
        "stretches": [
            {
                "tokens from": i * DRIFT_STRETCH,
                "source": math.exp(float(exact)),
                "float32": math.exp(float(before)),
                "coded": math.exp(float(after)),
                "change %": changes[i],
            }
            for i, (exact, before, after) in enumerate(zip(*losses, strict=True))
        ],
        "first quarter %": sum(changes[:quarter]) / quarter,
        "last quarter %": sum(changes[-quarter:]) / quarter,
        "largest %": max(changes),
    }
