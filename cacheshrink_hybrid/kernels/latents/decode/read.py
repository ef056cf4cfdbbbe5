"""What attention does with the latents it reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....errors import ConfigError
from ..paged_rows import PagedRows
from .tiles import one_launch_holds


@dataclass(frozen=True, eq=False, kw_only=True)
class KeyUp:
    """How keys are rebuilt from latents: k = rotate(norm(weight c + bias), slot).

    Attributes:
        weight: (J, D, rank of a head's keys).
        bias: (J, D).
        cos, sin: angles by slot, (slots, rotary dim / 2), float32 or 16-bit; None without rotation.
            The first `rotary dim` channels of a key are rotated in pairs (i, i + rotary dim / 2).
        norm_weight: gains of an RMS norm over the D channels of a key, (D,); None for no norm.
        norm_epsilon: added to the mean square before its root.
        per_head: heads read channels of their own, and values are no keys: each run of the row that
            holds keys has equally many channels of head 0, of head 1, and so on, `rank` of each in
            all; otherwise all heads read the first `rank` channels.
    """

    weight: Tensor
    bias: Tensor
    cos: Tensor | None = None
    sin: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_epsilon: float = 0.0
    per_head: bool = False

    def __post_init__(self) -> None:
        faults = []
        if self.weight.ndim != 3:
            faults.append(f"weight is {self.weight.ndim}-d; due is (J, D, rank)")
        elif self.bias.shape != self.weight.shape[:2]:
            faults.append(
                f"bias has shape {tuple(self.bias.shape)}; due is {tuple(self.weight.shape[:2])}"
            )
        elif self.norm_weight is not None and self.norm_weight.shape != self.weight.shape[1:2]:
            faults.append(
                f"norm_weight has shape {tuple(self.norm_weight.shape)}; due is "
                f"{tuple(self.weight.shape[1:2])}"
            )
        if (self.cos is None) != (self.sin is None):
            faults.append("cos and sin go together")
        if self.cos is not None and self.sin is not None:
            if self.cos.ndim != 2 or self.cos.shape != self.sin.shape:
                faults.append("cos and sin are not both (slots, rotary dim / 2)")
            elif self.weight.ndim == 3 and 2 * self.cos.shape[1] > self.weight.shape[1]:
                faults.append(
                    f"{2 * self.cos.shape[1]} rotated channels in keys of {self.weight.shape[1]}"
                )
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def rotary_dim(self) -> int:
        return 0 if self.cos is None else 2 * self.cos.shape[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockUp:
    """How queries meet keys that are stored rotated by their place in a block of slots.

    Of slot b + j, in the block that begins at slot b, k = R_b (weight c + R_j m), and so
    q . k = (weight^T R_-b q) . c + (R_-b q) . (R_j m).

    Attributes:
        weight: (J, D, key rank).
        mean: R_j m of the places j in a block, (J, block, D); blocks are a power of two of slots.
        cos, sin: of R_-b by block, which turns a query back, (blocks, rotary dim / 2), float32. The
            first `rotary dim` channels are rotated in pairs (i, i + rotary dim / 2).
    """

    weight: Tensor
    mean: Tensor
    cos: Tensor
    sin: Tensor

    def __post_init__(self) -> None:
        faults = []
        if self.weight.ndim != 3:
            faults.append(f"weight is {self.weight.ndim}-d; due is (J, D, key rank)")
        if self.mean.ndim != 3:
            faults.append(f"mean is {self.mean.ndim}-d; due is (J, block, D)")
        elif (block := self.mean.shape[1]) < 16 or block & (block - 1):
            faults.append(f"mean is of {block} slots; due is a power of two, at least 16")
        elif self.weight.shape[:2] != self.mean.shape[::2]:
            faults.append(
                f"weight of (J, D)={tuple(self.weight.shape[:2])} does not fit a mean of "
                f"{tuple(self.mean.shape[::2])}"
            )
        if self.cos.ndim != 2 or self.cos.shape != self.sin.shape:
            faults.append("cos and sin are not both (blocks, rotary dim / 2)")
        elif self.mean.ndim == 3 and not 0 < 2 * self.cos.shape[1] <= self.mean.shape[2]:
            faults.append(
                f"{2 * self.cos.shape[1]} rotated channels in keys of {self.mean.shape[2]}"
            )
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def block_slots(self) -> int:
        return self.mean.shape[1]

    @property
    def rotary_dim(self) -> int:
        return 2 * self.cos.shape[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentRead:
    """How queries meet the latents of a layer.

    Attributes:
        key_rank: channels that keys are made of, the first of the latent (all heads together).
        value_rank: channels that values are made of, the last of the latent.
        scale: factor of the scores.
        window: a query at slot p sees the slots above p - window; None for all.
        softcap: scores become softcap * tanh(score / softcap); None for not.
        key_up: how keys are rebuilt; None if they are not.
        block_up: how keys are met that are stored rotated; None for others. With neither, queries
            were brought into latent space.

    Raises:
        ConfigError: numbers out of range.
    """

    key_rank: int
    value_rank: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    key_up: KeyUp | None = None
    block_up: BlockUp | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.key_rank < 1 or self.value_rank < 1:
            faults.append(f"ranks {self.key_rank}, {self.value_rank} must be at least 1")
        if self.window is not None and self.window < 1:
            faults.append(f"window={self.window} must be at least 1, or None")
        if self.softcap is not None and self.softcap <= 0:
            faults.append(f"softcap={self.softcap} must be positive, or None")
        if self.key_up is not None and self.key_up.weight.ndim == 3:
            heads, _, rank = self.key_up.weight.shape
            due = rank * heads if self.key_up.per_head else rank
            if due != self.key_rank:
                faults.append(f"key_rank={self.key_rank}, but key_up reads {due} channels")
        if self.block_up is not None and self.block_up.weight.shape[2] != self.key_rank:
            rank = self.block_up.weight.shape[2]
            faults.append(f"key_rank={self.key_rank}, but block_up reads {rank} channels")
        if self.block_up is not None and self.key_up is not None:
            faults.append("key_up is of keys that are rebuilt, block_up of keys that are not")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def key_heads(self) -> int:
        """Heads that read channels of their own, J; 1 where all read the same ones."""
        if self.key_up is not None and self.key_up.per_head:
            return self.key_up.weight.shape[0]
        return 1

    @property
    def own_rank(self) -> int:
        """Channels that the keys of one head are made of."""
        return self.key_rank // self.key_heads

    @property
    def up(self) -> KeyUp | BlockUp | None:
        """What stands between queries of the heads' width and channels; None for nothing."""
        return self.key_up or self.block_up

    @property
    def query_width(self) -> int:
        """Channels K of a query."""
        return self.own_rank if self.up is None else self.up.weight.shape[1]

    def in_one_launch(self, num_channels: int, itemsize: int) -> bool:
        """Whether one launch of a kernel holds all that comes of a slot; else rows are read in two
        passes.

        Args:
            num_channels: of a row.
            itemsize: bytes of a factor of a product, 2 or 4.
        """
        if self.block_up is not None:
            return False
        rebuilt = 0 if self.key_up is None else self.query_width
        channels = min(self.value_rank + self.own_rank, num_channels)
        return one_launch_holds(channels, self.own_rank, rebuilt, itemsize)

    def check(self, query: Tensor, offset: Tensor | None, rows: PagedRows) -> None:
        """Refuse queries (B, T, H, K) that do not fit.

        Raises:
            ConfigError: a wrong shape or type.
        """
        faults = []
        if query.ndim != 4:
            raise ConfigError(f"query is {query.ndim}-d; due is (B, T, H, channels)")
        heads, width = query.shape[2:]
        if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            faults.append(f"query is {query.dtype}; due is float32, float16 or bfloat16")
        if max(self.key_rank, self.value_rank) > rows.layout.num_channels:
            faults.append(
                f"ranks {self.key_rank}, {self.value_rank} pass the {rows.layout.num_channels} "
                "channels of a row"
            )
        if width != self.query_width:
            faults.append(f"query has {width} channels; due is {self.query_width}")
        key_heads = 1 if self.up is None else self.up.weight.shape[0]
        if heads % key_heads:
            faults.append(f"{heads} query heads on {key_heads} key heads")
        if self.up is not None and offset is not None:
            faults.append("offset belongs to queries in latent space; keys have a bias or a mean")
        if offset is not None and offset.shape != query.shape[:3]:
            faults.append(f"offset has shape {tuple(offset.shape)}; due is (B, T, H)")
        if faults:
            raise ConfigError("; ".join(faults))
