"""What a model stores under a plan, as the numbers that a layout is compiled from."""

from __future__ import annotations

import math

from ..plan import CompressionPlan
from ..pool.layout import FRAME_ALIGNMENT, LayerRows, Layout, compile_layout
from ..pool.state_map import StateRows
from ..spec import BYTES_16BIT, ModelSpec


def layer_rows(
    spec: ModelSpec, plan: CompressionPlan | None = None, *, element_bytes: int = BYTES_16BIT
) -> tuple[LayerRows, ...]:
    """What each attention layer stores per token.

    Args:
        plan: the conversion; None for the model as it is.
        element_bytes: bytes of one element where a layer stores elements as they are (keys and
            values, and latents that are not coded).
    """
    latents = {idx: latent for latent in (plan.latents if plan else ()) for idx in latent.layer_ids}
    rows = []
    for layer in spec.attention_layers:
        assert layer.attention is not None
        latent = latents.get(layer.layer_idx)
        if latent is None:
            row_bytes = layer.bytes_per_token * element_bytes // BYTES_16BIT
        elif latent.coded:
            row_bytes = latent.bytes_per_token
        else:
            row_bytes = latent.kv_lora_rank * element_bytes
        rows.append(
            LayerRows(
                layer_idx=layer.layer_idx,
                row_bytes=row_bytes,
                window=layer.attention.sliding_window,
            )
        )
    return tuple(rows)


def layer_states(spec: ModelSpec, plan: CompressionPlan | None = None) -> tuple[StateRows, ...]:
    """What each recurrent layer stores per sequence, in pieces that divide every frame.

    Args:
        plan: the conversion; None for the model as it is.
    """
    planned = {state.layer_idx: state.bytes_per_sequence for state in (plan.states if plan else ())}
    rows = []
    for layer in spec.layers:
        num_bytes = planned.get(layer.layer_idx, layer.bytes_per_sequence)
        if num_bytes:
            row_bytes = math.gcd(FRAME_ALIGNMENT, num_bytes)
            rows.append(
                StateRows(
                    layer_idx=layer.layer_idx,
                    name="state",
                    num_rows=num_bytes // row_bytes,
                    row_bytes=row_bytes,
                )
            )
    return tuple(rows)


def planned_layout(spec: ModelSpec, plan: CompressionPlan | None = None) -> Layout | None:
    """The layout of a model's frames with 16-bit elements; None if it remembers nothing."""
    rows, states = layer_rows(spec, plan), layer_states(spec, plan)
    return compile_layout(rows, states) if rows or states else None
