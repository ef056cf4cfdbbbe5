"""What the launches of `two_passes` leave for each other, and how much of it at a time.

Sizes follow from shapes alone, never from lengths, so that graphs can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import has_warpgroups
from ...numerics import TRITON_DTYPES, dot_dtype
from ..paged_rows import PagedRows
from ..pieces import MAX_WIDTH, Stretch, num_pieces, own_stretches, stretches_of
from .read import LatentRead
from .tiles import PassTiles, choose_pass_tiles

SCRATCH_BYTES = 2**28
_TORCH_DTYPES = {triton_dtype: dtype for dtype, triton_dtype in TRITON_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Portion:
    """How many sequences, new tokens of each, and steps of slots are read at once."""

    sequences: int
    tokens: int
    steps: int


@dataclass(frozen=True, eq=False, kw_only=True)
class PassSizes:
    """Sizes of a reading in two passes.

    Attributes:
        batch, tokens, heads: B, T and H.
        keys, values: their channels.
        tiles: of the launches.
        num_slots: that frames have room for.
        block_slots: of blocks in which keys are stored rotated; 0 for other keys.
        dot: type of the factors of products.
        absorbed: whether queries meet channels, and not keys that are rebuilt.
        has_gain: whether rows have gains.
    """

    batch: int
    tokens: int
    heads: int
    keys: tuple[Stretch, ...]
    values: tuple[Stretch, ...]
    tiles: PassTiles
    num_slots: int
    block_slots: int
    dot: tl.dtype
    absorbed: bool
    has_gain: bool

    @staticmethod
    def of(query: Tensor, rows: PagedRows, frame_table: Tensor, read: LatentRead) -> PassSizes:
        """Of queries (B, T, H, K) on rows with frames (B, max_frames)."""
        B, T, H, _ = query.shape
        layout, channels = rows.layout, rows.layout.num_channels
        keys = stretches_of(layout, 0, read.key_rank)
        if read.key_heads > 1:
            keys = own_stretches(layout, read.key_rank, read.key_heads)
        block_slots = 0 if read.block_up is None else read.block_up.block_slots
        group = H if read.key_up is None else H // read.key_up.weight.shape[0]
        return PassSizes(
            batch=B,
            tokens=T,
            heads=H,
            keys=keys,
            values=stretches_of(layout, channels - read.value_rank, channels),
            tiles=choose_pass_tiles(
                T * group,
                T * H,
                block_slots,
                layout,
                exact=query.dtype == torch.float32,
                warpgroups=has_warpgroups(query.device),
            ),
            num_slots=frame_table.shape[1] * rows.frame_tokens,
            block_slots=block_slots,
            dot=dot_dtype(query.dtype, wide=layout.wide),
            absorbed=read.key_up is None,
            has_gain=layout.gain_byte is not None,
        )

    @property
    def dtype(self) -> torch.dtype:
        """`dot` in torch."""
        return _TORCH_DTYPES[self.dot]

    @property
    def step(self) -> int:
        """Slots that are read at once at least: a tile, or a block."""
        return max(self.tiles.block_n, self.block_slots)

    @cached_property
    def num_steps(self) -> int:
        return max(1, triton.cdiv(self.num_slots, self.step))

    def blocks(self, steps: int) -> int:
        """For which queries are absorbed anew in so many steps of slots."""
        return steps * self.step // self.block_slots if self.block_slots else 1

    def num_tiles(self, steps: int) -> int:
        return steps * self.step // self.tiles.block_n

    @cached_property
    def step_bytes(self) -> int:
        """Of one new token of one sequence, for one step of slots, where they grow with slots."""
        of_head = self.step * self.dtype.itemsize + 8 * self.num_tiles(1)
        if self.block_slots:
            of_pieces = num_pieces(self.keys) * (MAX_WIDTH * self.dtype.itemsize + 4)
            of_head += self.blocks(1) * (of_pieces + 4 * self.block_slots)
        return self.heads * of_head

    def portion(self, scratch_bytes: int) -> Portion:
        """What takes at most so many bytes of scratch: all, or some sequences, or one sequence's
        tokens, or slots of one token; but never less than a step."""
        whole = self.step_bytes * self.num_steps
        sequences = _within(scratch_bytes // (self.tokens * whole), self.batch)
        tokens = _within(scratch_bytes // (sequences * whole), self.tokens)
        return Portion(
            sequences,
            tokens,
            _within(scratch_bytes // (sequences * tokens * self.step_bytes), self.num_steps),
        )


def _within(count: int, most: int) -> int:
    return max(1, min(count, most))


@dataclass(frozen=True, eq=False, kw_only=True)
class Scratch:
    """Of a portion.

    Attributes:
        asked: numbers by piece of the keys' channels, (B, T, blocks, H, pieces, WIDTH).
        largest: what they were divided by, (B, T, blocks, H, pieces).
        of_mean: products with the mean of keys, by place in a block, (B, T, blocks, H, block).
        weights: of slots, beside the largest score of their tile, (B, T, H, tiles, BLOCK_N).
        peaks, sums: largest scores in base 2, and sums of the weights, (B, T, H, tiles).
        gains: of the rows, (B, tiles, BLOCK_N).
    """

    asked: Tensor | None
    largest: Tensor | None
    of_mean: Tensor | None
    weights: Tensor
    peaks: Tensor
    sums: Tensor
    gains: Tensor | None

    @property
    def num_tiles(self) -> int:
        return self.weights.shape[3]

    @property
    def blocks(self) -> int:
        """For which queries are absorbed anew; 1 where they are not."""
        return 1 if self.asked is None else self.asked.shape[2]

    @staticmethod
    def of(sizes: PassSizes, batch: int, tokens: int, steps: int, device: torch.device) -> Scratch:
        """For T = `tokens` new tokens of B = `batch` sequences."""

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(batch, *shape, device=device, dtype=dtype)

        H, block_n = sizes.heads, sizes.tiles.block_n
        tiles, pieces = sizes.num_tiles(steps), num_pieces(sizes.keys)
        head = tokens, sizes.blocks(steps), H
        absorbed, dtype = sizes.absorbed, sizes.dtype
        return Scratch(
            asked=new(*head, pieces, MAX_WIDTH, dtype=dtype) if absorbed else None,
            largest=new(*head, pieces) if absorbed else None,
            of_mean=new(*head, sizes.block_slots) if sizes.block_slots else None,
            weights=new(tokens, H, tiles, block_n, dtype=dtype),
            peaks=new(tokens, H, tiles),
            sums=new(tokens, H, tiles),
            gains=new(tiles, block_n) if sizes.has_gain else None,
        )
