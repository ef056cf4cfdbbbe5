"""`latent_decode` and `latent_prefill` in several launches, which read rows of any width.

    asked    what queries ask of the channels: where keys are stored rotated, block by block of
             slots (`absorb`); nothing where keys are rebuilt
    weighed  how much every slot weighs for every query, by a pass over the channels of the keys
             (`score`, `rebuilt_score`)
    mixed    the values' channels, piece by piece, by a pass over those (`mix`); then what the
             splits of a sequence have found is merged (`merge`)

Between launches lies scratch of bounded size (`scratch`): what needs more is read in portions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

from ...launch import has_native_float8, launch, num_multiprocessors
from ..paged_rows import PagedRows
from ..pieces import MAX_WIDTH, FramedRows, num_pieces
from .absorb import latent_absorb_fwd_kernel, latent_ask_fwd_kernel
from .key_tile import key_parts
from .merge import merge_splits
from .mix import latent_mix_fwd_kernel
from .read import LatentRead
from .rebuilt_score import latent_rebuilt_score_fwd_kernel
from .score import latent_score_fwd_kernel
from .scratch import SCRATCH_BYTES, PassSizes, Scratch
from .tiles import choose_splits


def latent_decode_in_two_passes(
    query: Tensor,
    rows: PagedRows,
    frame_table: Tensor,
    context_lens: Tensor,
    *,
    read: LatentRead,
    offset: Tensor | None,
    query_lens: Tensor | None,
    first_slots: Tensor | None,
    num_splits: int | None,
    scratch_bytes: int = SCRATCH_BYTES,
) -> tuple[Tensor, Tensor]:
    """See `latent_decode` and `latent_prefill`; `scratch_bytes` as of `PassSizes.portion`."""
    B, T, H, _ = query.shape
    sizes = PassSizes.of(query, rows, frame_table, read)
    portion = sizes.portion(scratch_bytes)
    whole = TwoPasses(
        query, rows, frame_table, context_lens, read, offset, query_lens, first_slots, sizes
    )
    out = query.new_empty(B, T, H, read.value_rank)
    lse = torch.empty(B, T, H, device=query.device, dtype=torch.float32)
    for first in range(0, B, portion.sequences):
        for token in range(0, T, portion.tokens):
            at = slice(first, first + portion.sequences), slice(token, token + portion.tokens)
            whole.of(*at).run(out[at], lse[at], portion.steps, num_splits)
    return out, lse


@dataclass(frozen=True, eq=False)
class TwoPasses:
    """Reading for queries (B, T, H, K); sizes are those of the whole that they may be a part of."""

    query: Tensor
    rows: PagedRows
    frame_table: Tensor
    context_lens: Tensor
    read: LatentRead
    offset: Tensor | None
    query_lens: Tensor | None
    first_slots: Tensor | None
    sizes: PassSizes

    def of(self, sequences: slice, tokens: slice) -> TwoPasses:
        """That of some sequences, and of some new tokens of each."""
        num_tokens = self.query.shape[1]
        begin, end = tokens.start, min(tokens.stop, num_tokens)
        lens, new_lens = self.context_lens[sequences], None
        if self.query_lens is None:
            lens = (lens - (num_tokens - end)).clamp_min(0) if end < num_tokens else lens
        else:
            left = (self.query_lens[sequences] - begin).clamp_min(0)
            new_lens = left.clamp_max(end - begin)
            lens = lens - left + new_lens
        return replace(
            self,
            query=self.query[sequences, tokens].contiguous(),
            frame_table=self.frame_table[sequences],
            context_lens=lens,
            offset=None if self.offset is None else self.offset[sequences, tokens].contiguous(),
            query_lens=new_lens,
            first_slots=None if self.first_slots is None else self.first_slots[sequences],
        )

    def run(self, out: Tensor, lse: Tensor, steps: int, num_splits: int | None) -> None:
        """Write the output (B, T, H, RV) and the log-sum-exp (B, T, H), which may be parts of
        larger ones, reading so many steps of slots at once."""
        B, T, H, _ = self.query.shape
        sizes, tiles, device = self.sizes, self.sizes.tiles, self.query.device
        scratch = Scratch.of(sizes, B, T, steps, device)
        starts = range(0, sizes.num_steps, steps)
        if num_splits is None:
            programs = B * triton.cdiv(T * H, tiles.mix_m) * num_pieces(sizes.values)
            sms = num_multiprocessors(device)
            num_splits = choose_splits(programs, steps * sizes.step, tiles.block_n, sms)
        all_splits = num_splits * len(starts)
        shape = B, T, H, all_splits
        part = torch.empty(*shape, out.shape[3], device=device, dtype=torch.float32)
        part_lse = torch.empty(*shape, device=device, dtype=torch.float32)
        if self.read.up is None:
            self._ask(scratch)
        for index, start in enumerate(starts):
            first = start * sizes.step
            last = min(first + steps * sizes.step, sizes.num_slots)
            ranged = {"from_slot": first, "to_slot": last}
            if self.read.block_up is not None:
                self._absorb(scratch, ranged)
            if self.read.key_up is None:
                self._score(scratch, ranged)
            else:
                self._score_rebuilt(scratch, ranged)
            self._mix(scratch, ranged, part, part_lse, index * num_splits, num_splits)
        merge_splits(part, part_lse, out, lse)

    def _ask(self, scratch: Scratch) -> None:
        B, T, H, rank = self.query.shape
        block_m = 16
        launch(
            latent_ask_fwd_kernel,
            (num_pieces(self.sizes.keys), triton.cdiv(B * T * H, block_m)),
            num_stages=1,
            p_query=self.query,
            p_asked=scratch.asked,
            p_largest=scratch.largest,
            num_rows=B * T * H,
            RANK=rank,
            STRETCHES=self.sizes.keys,
            PIECES=num_pieces(self.sizes.keys),
            WIDTH=MAX_WIDTH,
            BLOCK_M=block_m,
        )

    def _absorb(self, scratch: Scratch, ranged: dict[str, int]) -> None:
        up, sizes, tiles = self.read.block_up, self.sizes, self.sizes.tiles
        assert up is not None
        B, T, H, D = self.query.shape
        J, block_slots = up.mean.shape[:2]
        pieces, group = num_pieces(sizes.keys), H // J
        num_blocks = scratch.blocks
        num_rows = B * T * num_blocks * group
        programs = J * (pieces + triton.cdiv(block_slots, MAX_WIDTH))
        walks = triton.cdiv(4 * num_multiprocessors(self.query.device), programs)
        launch(
            latent_absorb_fwd_kernel,
            (programs, min(walks, triton.cdiv(num_rows, tiles.absorb_m))),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            p_query=self.query,
            p_up=up.weight.contiguous(),
            p_mean=up.mean.contiguous(),
            p_cos=up.cos.contiguous(),
            p_sin=up.sin.contiguous(),
            p_context_lens=self.context_lens,
            p_asked=scratch.asked,
            p_largest=scratch.largest,
            p_of_mean=scratch.of_mean,
            num_rows=num_rows,
            num_tokens=T,
            num_blocks=num_blocks,
            first_block=ranged["from_slot"] // block_slots,
            HEADS=H,
            GROUP=group,
            HEAD_DIM=D,
            HALF=up.rotary_dim // 2,
            RANK=up.weight.shape[2],
            STRETCHES=sizes.keys,
            PIECES=pieces,
            BLOCK_SLOTS=block_slots,
            WINDOW=self.read.window or 0,
            DOT=sizes.dot,
            WIDTH=MAX_WIDTH,
            BLOCK_D=max(16, triton.next_power_of_2(D)),
            BLOCK_M=tiles.absorb_m,
        )

    def _score(self, scratch: Scratch, ranged: dict[str, int]) -> None:
        B, T, H, _ = self.query.shape
        tiles = self.sizes.tiles
        launch(
            latent_score_fwd_kernel,
            (triton.cdiv(T * H, tiles.score_m), scratch.num_tiles, B),
            p_asked=scratch.asked,
            p_largest=scratch.largest,
            p_of_mean=scratch.of_mean,
            p_offset=self.offset,
            num_blocks=scratch.blocks,
            scale=self.read.scale,
            SOFTCAP=self.read.softcap or 0.0,
            STRETCHES=self.sizes.keys,
            PIECES=num_pieces(self.sizes.keys),
            BLOCK_SLOTS=self.sizes.block_slots,
            WIDTH=MAX_WIDTH,
            BLOCK_M=tiles.score_m,
            **self._shared(scratch, ranged),
        )

    def _score_rebuilt(self, scratch: Scratch, ranged: dict[str, int]) -> None:
        up, tiles = self.read.key_up, self.sizes.tiles
        assert up is not None
        B, T, H, D = self.query.shape
        J, _, rank = up.weight.shape
        launch(
            latent_rebuilt_score_fwd_kernel,
            (J * triton.cdiv(T * H // J, tiles.score_m), scratch.num_tiles, B),
            p_query=self.query,
            p_up=up.weight.contiguous(),
            p_bias=up.bias.contiguous(),
            p_norm=up.norm_weight,
            p_cos=None if up.cos is None else up.cos.contiguous(),
            p_sin=None if up.sin is None else up.sin.contiguous(),
            scale=self.read.scale,
            SOFTCAP=self.read.softcap or 0.0,
            GROUP=H // J,
            HEAD_DIM=D,
            RANK=rank,
            PER_HEAD=up.per_head,
            EPSILON=up.norm_epsilon,
            PARTS=key_parts(D, up.rotary_dim),
            STRETCHES=self.sizes.keys,
            BLOCK_M=tiles.score_m,
            **self._shared(scratch, ranged),
        )

    def _mix(
        self,
        scratch: Scratch,
        ranged: dict[str, int],
        part: Tensor,
        part_lse: Tensor,
        first_split: int,
        num_splits: int,
    ) -> None:
        B, T, H, _ = self.query.shape
        values, tiles = self.sizes.values, self.sizes.tiles
        launch(
            latent_mix_fwd_kernel,
            (num_pieces(values), triton.cdiv(T * H, tiles.mix_m), B * num_splits),
            p_out=part,
            p_lse=part_lse,
            num_tiles=scratch.num_tiles,
            num_splits=num_splits,
            first_split=first_split,
            all_splits=part.shape[3],
            VALUE_WIDTH=part.shape[4],
            STRETCHES=values,
            BLOCK_M=tiles.mix_m,
            **self._shared(scratch, ranged),
        )

    def _shared(self, scratch: Scratch, ranged: dict[str, int]) -> dict[str, Any]:
        """Arguments of every launch that reads rows."""
        tiles = self.sizes.tiles
        return {
            "p_arena": self.rows.arena,
            "p_tables": self.rows.tables,
            "p_frame_table": self.frame_table,
            "p_context_lens": self.context_lens,
            "p_query_lens": self.query_lens,
            "p_first_slots": self.first_slots,
            "p_weights": scratch.weights,
            "p_peaks": scratch.peaks,
            "p_sums": scratch.sums,
            "p_gains": scratch.gains,
            "num_tokens": self.query.shape[1],
            "max_frames": self.frame_table.shape[1],
            "layer_offset": self.rows.layer_offset,
            **ranged,
            "HEADS": self.query.shape[2],
            "ROWS": FramedRows.of(self.rows),
            "WINDOW": self.read.window or 0,
            "NATIVE_FLOAT8": has_native_float8(self.query.device),
            "DOT": self.sizes.dot,
            "BLOCK_N": tiles.block_n,
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }
