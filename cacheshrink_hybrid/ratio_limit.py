"""How far a model can be compressed at all, told before any text is read."""

from __future__ import annotations

import math

from .config import WIDTHS_OF, CompressionConfig
from .errors import PlanError
from .factorize import row_alignment, run_channels
from .modules.attention_parts import AttentionParts
from .spec import BYTES_16BIT, ModelSpec


def check_reachable(
    spec: ModelSpec, parts: list[AttentionParts], config: CompressionConfig
) -> None:
    """Raise `PlanError` for a ratio that no plan can reach, which calibration would not change.

    The least that coded latents take is one run of the smallest width per module; others take one
    channel of 16 bits, and two where keys and values are apart.
    """
    if not parts or config.budget_bytes is not None or config.d_latent is not None:
        return
    apart = config.compression_method not in ("auto", "joint")
    least = 0
    for part in parts:
        if config.coded:
            row_format = config.row_format(row_alignment(part.kv_width))
            runs = [(run_channels(2 * part.kv_width), min(WIDTHS_OF[config.cache_bits]))]
            one = row_format.row_bytes(runs)
        else:
            one = BYTES_16BIT * (2 if apart else 1)
        least += one * len(part.layer_ids)
    kept = kept_bytes(spec, parts)
    least += kept
    allowed = spec.bytes_per_token / config.compression_ratio
    if allowed < least:
        raise PlanError(
            f"compression_ratio={config.compression_ratio:g} leaves {allowed:.1f} bytes per token, "
            f"and the least that can be stored with these settings is {least}; give a "
            f"compression_ratio of at most {_floor(spec.bytes_per_token / least)}"
            + (f", or keep fewer layers, which take {kept}" if kept else "")
        )


def _floor(ratio: float) -> str:
    """A ratio in few digits, not rounded up."""
    return f"{math.floor(100 * ratio) / 100:g}"


def kept_bytes(spec: ModelSpec, parts: list[AttentionParts]) -> int:
    """Bytes per token of attention layers that are left as they are."""
    compressed_ids = {idx for part in parts for idx in part.layer_ids}
    return sum(
        layer.bytes_per_token for layer in spec.layers if layer.layer_idx not in compressed_ids
    )
