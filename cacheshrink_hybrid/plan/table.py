"""Plans as tables, and tables of any records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..spec import LayerSpec, ModelSpec

if TYPE_CHECKING:
    from .latent import LatentPlan
    from .model import CompressionPlan


MAX_WIDTH = 100
"""Characters that a printed table may take in a row."""


def plan_records(plan: CompressionPlan, spec: ModelSpec) -> list[dict[str, Any]]:
    """One record per cache layer, in order: what it stores before and after."""
    by_layer = {idx: latent for latent in plan.latents for idx in latent.layer_ids}
    records = []
    for layer in spec.layers:
        latent = by_layer.get(layer.layer_idx)
        record: dict[str, Any] = {"layer": layer.layer_idx, "mixer": layer.mixer or "-"}
        record |= _state_record(plan, layer)
        if layer.attention is None:
            record |= {"attention": "-"}
        else:
            window = layer.attention.sliding_window
            record |= {
                "attention": "full" if window is None else f"window {window}",
                "source B/token": layer.bytes_per_token,
            }
            if latent is None:
                record |= {"stored B/token": layer.bytes_per_token, "method": "original"}
            else:
                record |= {
                    "stored B/token": latent.bytes_per_token,
                    "method": latent.method,
                    "rank": latent.kv_lora_rank,
                    "bits": latent.widths,
                    "K/V rank": f"{latent.key_rank}/{latent.value_rank}",
                    "read": latent.read_mode,
                    "predicted loss": _loss(latent) / len(latent.layer_ids),
                    "relative error": latent.relative_error,
                    "read ns/token": latent.read_ns,
                }
        records.append(record)
    return records


def _state_record(whole: CompressionPlan, layer: LayerSpec) -> dict[str, Any]:
    """The state columns of one layer."""
    if layer.state is None:
        return {}
    plan = next((state for state in whole.states if state.layer_idx == layer.layer_idx), None)
    record: dict[str, Any] = {"source state B": layer.bytes_per_sequence}
    if plan is None:
        return record | {"stored state B": layer.bytes_per_sequence, "state": "original"}
    return record | {
        "stored state B": plan.bytes_per_sequence,
        "state": plan.method,
        "heads": plan.codes,
        "replay": plan.replay_length,
        "state loss": plan.predicted_loss + plan.rounding_loss,
        "state error": plan.relative_error,
    }


def plan_table(plan: CompressionPlan, spec: ModelSpec) -> str:
    """The plan as an aligned text table with a line for each memory."""
    lines = [f"calibrated on {plan.calibrated_on}"] if plan.calibrated_on else []
    lines.append(fitting_table(plan_records(plan, spec)))
    if plan.source_bytes_per_token:
        lines.append(
            f"{plan.source_bytes_per_token} -> {plan.bytes_per_token} bytes per token "
            f"({plan.compression_ratio:.2f}x at 16 bits), {key_value_prediction(plan)}"
        )
    if plan.source_state_bytes:
        lines.append(
            f"{plan.source_state_bytes} -> {plan.state_bytes} bytes of state per sequence "
            f"({plan.state_ratio:.2f}x), {state_prediction(plan)}"
        )
    return "\n".join(lines)


def _loss(latent: LatentPlan) -> float:
    return latent.predicted_loss if latent.held_out_loss is None else latent.held_out_loss


def key_value_prediction(plan: CompressionPlan) -> str:
    """What keys and values are to lose, and on which text that was found."""
    if plan.held_out_loss is None:
        return _fitted_loss(plan, plan.predicted_loss)
    return f"predicted loss {plan.held_out_loss:.4g} {_unit(plan)} on held-out calibration text"


def state_prediction(plan: CompressionPlan) -> str:
    """What recurrent states are to lose, and on which text that was found."""
    return _fitted_loss(plan, plan.state_loss)


def _fitted_loss(plan: CompressionPlan, loss: float) -> str:
    text = " on the calibration text itself" if plan.calibrated_on else ""
    return f"predicted loss {loss:.4g} {_unit(plan)}{text}"


def _unit(plan: CompressionPlan) -> str:
    return "nats/token" if plan.metric == "fisher" else f"{plan.metric} units"


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Align records (dicts with possibly different keys) as a Markdown table."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [columns] + [
        [_cell(record[column]) if column in record else "" for column in columns]
        for record in records
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def fitting_table(records: Sequence[dict[str, Any]], max_width: int = MAX_WIDTH) -> str:
    """As `format_table`, cut into tables that fit `max_width` characters; each begins with the
    first column."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    key, *rest = columns
    parts: list[list[str]] = [[key]]
    for column in rest:
        wider = _only(records, [*parts[-1], column])
        if len(parts[-1]) > 1 and len(format_table(wider).split("\n", 1)[0]) > max_width:
            parts.append([key])
        parts[-1].append(column)
    return "\n\n".join(format_table(_only(records, part)) for part in parts)


def _only(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Records with these columns; what one lacks stays empty."""
    return [{column: record.get(column, "") for column in columns} for record in records]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
