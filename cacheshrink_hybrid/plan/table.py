"""Plans as tables, and tables of any records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..spec import LayerSpec, ModelSpec

if TYPE_CHECKING:
    from .model import CompressionPlan


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
                    "predicted loss": latent.predicted_loss / len(latent.layer_ids),
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
    unit = "nats/token" if plan.metric == "fisher" else f"{plan.metric} units"
    lines = [format_table(plan_records(plan, spec))]
    if plan.source_bytes_per_token:
        lines.append(
            f"{plan.source_bytes_per_token} -> {plan.bytes_per_token} bytes per token "
            f"({plan.compression_ratio:.2f}x at 16 bits), predicted loss "
            f"{plan.predicted_loss:.4g} {unit}"
        )
    if plan.source_state_bytes:
        lines.append(
            f"{plan.source_state_bytes} -> {plan.state_bytes} bytes of state per sequence "
            f"({plan.state_ratio:.2f}x), predicted loss {plan.state_loss:.4g} {unit}"
        )
    return "\n".join(lines)


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


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
