"""How long a decode step spends on one cached token: bytes to read against products to form.

A step reads every stored byte of the context once and spends two floating-point operations per
product; the slower of the two bounds it, since a fused kernel overlaps them. Per token and layer,
with H query heads, J key heads of D, Rk key channels and Rv value channels:

    absorb, decoupled         2 H (Rk + Rv)
    rotate                    2 H (Rk + D + Rv) + 2 H D Rk / block, D for the mean of the keys
    reconstruct, joint        2 J D Rk + 2 H D + 2 H Rv
    reconstruct, per head     2 D Rk + 2 H D + 2 H Rv
"""

from __future__ import annotations

from ...device_profile import DeviceProfile
from ...methods import LATENT_KINDS
from .rotate import BLOCK_SLOTS


def read_operations(
    method: str,
    read_mode: str,
    *,
    num_heads: int,
    kv_width: int,
    head_dim: int,
    key_rank: int,
    value_rank: int,
) -> int:
    """Floating-point operations per cached token and layer of one decode step.

    Args:
        method, read_mode: of the layer's `LatentPlan`.
        num_heads: query heads, H.
        kv_width: J * D.
    """
    values = 2 * num_heads * value_rank
    if read_mode == "rotate":
        absorbed = head_dim * key_rank // BLOCK_SLOTS
        return values + 2 * num_heads * (key_rank + head_dim + absorbed)
    if read_mode != "reconstruct":
        return values + 2 * num_heads * key_rank
    rebuilt_by = head_dim if LATENT_KINDS[method].per_head else kv_width
    return values + 2 * rebuilt_by * key_rank + 2 * num_heads * head_dim


def read_seconds(profile: DeviceProfile, row_bytes: int, operations: int) -> float:
    """Time per cached token and layer of one decode step."""
    return max(row_bytes / profile.bandwidth, operations / profile.matrix_rate)
