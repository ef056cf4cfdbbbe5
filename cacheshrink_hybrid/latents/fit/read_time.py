"""How long a decode step spends on one cached token: bytes to move against products to form.

A launch moves its bytes once and spends two floating-point operations per product; the slower of
the two bounds it, since a kernel overlaps them. With H query heads, J key heads of D, Rk key
channels and Rv value channels, operations per token and layer are

    absorb, decoupled         2 H (Rk + Rv)
    rotate                    2 H (Rk + D + Rv) + 2 H D Rk / block, D for the mean of the keys
    reconstruct, joint        2 J D Rk + 2 H D + 2 H Rv
    reconstruct, per head     2 D Rk + 2 H D + 2 H Rv

One launch reads a row once. Rows that are too wide for that, and keys that are stored rotated, are
read in two passes (`kernels.latents.decode.two_passes`), which leave scratch for each other:
16-bit absorbed queries, 2 H Rk / block bytes, products with the mean, 4 H, and 16-bit weights, 2 H.
What is read again soon is taken to be at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...device_profile import DeviceProfile
from ...kernels.latents.decode.tiles import one_launch_holds
from ...methods import LATENT_KINDS
from .rotate import BLOCK_SLOTS

HALF_BYTES = 2
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes that a launch moves, and operations that it does, for one cached token."""

    num_bytes: float
    operations: float

    def seconds(self, profile: DeviceProfile) -> float:
        return max(self.num_bytes / profile.bandwidth, self.operations / profile.matrix_rate)

    def waits_for_bytes(self, profile: DeviceProfile) -> bool:
        return self.num_bytes / profile.bandwidth >= self.operations / profile.matrix_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a decode step does with one cached token of a layer.

    Attributes:
        method, read_mode: of the layer's `LatentPlan`.
        num_heads: query heads, H.
        kv_width: J * D.
        head_dim: D.
        key_rank, value_rank: channels, Rk and Rv.
        row_bytes: of the stored row.
        scores_values: queries meet the values as well, which are latents of the source.
    """

    method: str
    read_mode: str
    num_heads: int
    kv_width: int
    head_dim: int
    key_rank: int
    value_rank: int
    row_bytes: int
    scores_values: bool = False

    def seconds(self, profile: DeviceProfile) -> float:
        return sum(work.seconds(profile) for work in self.launches(profile))

    def launches(self, profile: DeviceProfile) -> tuple[Work, ...]:
        asking, scoring, mixing = self._asking, self._scoring, self._mixing
        if profile.fused or self.in_one_launch:
            return (Work(self.row_bytes, asking + scoring + mixing),)
        joint = LATENT_KINDS[self.method].joint
        of_keys = 1.0 if joint else self.key_rank / (self.key_rank + self.value_rank)
        of_values = 1.0 if joint else 1.0 - of_keys
        weights = HALF_BYTES * self.num_heads
        scored = Work(of_keys * self.row_bytes + weights, scoring)
        mixed = Work(of_values * self.row_bytes + weights, mixing)
        if self.read_mode != "rotate":
            return scored, mixed
        asked = HALF_BYTES * self.num_heads * self.key_rank / BLOCK_SLOTS
        asked += FLOAT_BYTES * self.num_heads
        return Work(asked, asking), Work(scored.num_bytes + asked, scoring), mixed

    @property
    def operations(self) -> int:
        return self._asking + self._scoring + self._mixing

    @property
    def in_one_launch(self) -> bool:
        """As `LatentRead.in_one_launch` of 16-bit products."""
        if self.read_mode == "rotate":
            return False
        kind, key_heads = LATENT_KINDS[self.method], self.kv_width // self.head_dim
        own_rank = self.key_rank // key_heads if kind.per_head else self.key_rank
        channels = own_rank if kind.joint else own_rank + self.value_rank
        rebuilt = self.head_dim if self.read_mode == "reconstruct" else 0
        return one_launch_holds(channels, own_rank, rebuilt, HALF_BYTES)

    @property
    def _asking(self) -> int:
        """Operations of bringing queries to a block of slots."""
        if self.read_mode != "rotate":
            return 0
        absorbed = self.head_dim * self.key_rank // BLOCK_SLOTS
        return 2 * self.num_heads * (absorbed + self.head_dim)

    @property
    def _scoring(self) -> int:
        of_values = 2 * self.num_heads * self.value_rank if self.scores_values else 0
        return self._scoring_keys + of_values

    @property
    def _scoring_keys(self) -> int:
        if self.read_mode != "reconstruct":
            return 2 * self.num_heads * self.key_rank
        rebuilt_by = self.head_dim if LATENT_KINDS[self.method].per_head else self.kv_width
        return 2 * rebuilt_by * self.key_rank + 2 * self.num_heads * self.head_dim

    @property
    def _mixing(self) -> int:
        return 2 * self.num_heads * self.value_rank
