"""Launches on paper of the kernels of recurrent states and of copying, for `kernel_cases`."""

from __future__ import annotations

from dataclasses import replace

import torch

from cacheshrink_hybrid.codecs.state import one_segment
from cacheshrink_hybrid.codecs.state_format import StateFormat, StateSegment
from cacheshrink_hybrid.kernels.pool_copy.kernel import pool_copy_triton
from cacheshrink_hybrid.kernels.states.conv_update_project import ConvPages
from cacheshrink_hybrid.kernels.states.conv_update_project.kernel import conv_update_project_triton
from cacheshrink_hybrid.kernels.states.gdn_replay import DeltaRing
from cacheshrink_hybrid.kernels.states.gdn_replay.kernel import gdn_replay_step_triton
from cacheshrink_hybrid.kernels.states.gdn_step.kernel import gdn_step_triton
from cacheshrink_hybrid.kernels.states.mamba1_step.kernel import mamba1_step_triton
from cacheshrink_hybrid.kernels.states.pages import StatePages, StatePlace
from cacheshrink_hybrid.kernels.states.ssd_replay import ReplayRing
from cacheshrink_hybrid.kernels.states.ssd_replay.kernel import (
    ssd_replay_flush_triton,
    ssd_replay_read_triton,
)
from cacheshrink_hybrid.kernels.states.ssd_step.kernel import ssd_step_triton

from .compile_kernels import meta


def pages_of(heads: int, head_dim: int, rank: int, code: str) -> StatePages:
    """States of a layer, row by row over frames of 64 KiB."""
    return StatePages(
        arena=meta(2**30, dtype=torch.uint8),
        frame_bytes=65536,
        place=StatePlace.packed(65536),
        format=one_segment(heads, head_dim, rank, code),
    )


def ssd(heads: int, head_dim: int, rank: int, groups: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(heads, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, groups, rank, dtype=torch.bfloat16)
        ssd_step_triton(
            meta(batch, heads, head_dim, dtype=torch.bfloat16),
            meta(batch, heads, dtype=torch.bfloat16),
            meta(heads, dtype=torch.float32),
            shared,
            shared,
            pages,
            table,
            table,
        )

    return run


def replay(heads: int, head_dim: int, ranks: tuple[int, ...], code: str, *, flush: bool):
    """Reading through, or flushing, a ring of 16 inputs in bfloat16, behind the state; given the
    rank of each group."""

    def run() -> None:
        groups, rank = len(ranks), max(ranks)
        per_group = heads // groups
        pages = replace(
            pages_of(heads, head_dim, rank, code),
            format=StateFormat(
                head_dim,
                tuple(
                    StateSegment(
                        heads=tuple(h for h in range(heads) if ranks[h // per_group] == kept),
                        rank=kept,
                        code=code,
                    )
                    for kept in sorted(set(ranks))
                ),
            ),
        )
        batch, at, places = 64, -(-pages.format.num_bytes // 16) * 16, []
        for size in (32 * heads * head_dim, 32 * groups * rank, 64 * heads):
            places.append(StatePlace.packed(65536, first_byte=at))
            at += size
        ring = ReplayRing(
            length=16,
            values=places[0],
            writes=places[1],
            steps=places[2],
            groups=groups,
            ranks=ranks if len(set(ranks)) > 1 else None,
            dtype=torch.bfloat16,
        )
        table = meta(batch, ring.num_frames(pages), dtype=torch.int32)
        pending = meta(batch, dtype=torch.int32)
        rate = meta(heads, dtype=torch.float32)
        shared = meta(batch, groups, rank, dtype=torch.bfloat16)
        x = meta(batch, heads, head_dim, dtype=torch.bfloat16)
        dt = meta(batch, heads, dtype=torch.float32)
        if flush:
            newest = (x, dt, shared)
            ssd_replay_flush_triton(rate, pages, ring, table, table, pending, newest)
            return
        ssd_replay_read_triton(x, dt, rate, shared, shared, pages, ring, table, pending)

    return run


def gdn(heads: int, head_dim: int, rank: int, groups: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(heads, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, groups, rank, dtype=torch.bfloat16)
        scalar = meta(batch, heads, dtype=torch.float32)
        value = meta(batch, heads, head_dim, dtype=torch.bfloat16)
        gdn_step_triton(shared, value, scalar, scalar, shared, pages, table, table)

    return run


def gdn_replay(heads: int, head_dim: int, rank: int, groups: int, code: str, *, batch: int = 64):
    """A step through a ring of 15 inputs in bfloat16, behind the state."""

    def run() -> None:
        pages = pages_of(heads, head_dim, rank, code)
        at, places = -(-pages.format.num_bytes // 16) * 16, []
        for size in (30 * heads * head_dim, 30 * groups * rank, 60 * heads, 60 * heads):
            places.append(StatePlace.packed(65536, first_byte=at))
            at += -(-size // 16) * 16
        ring = DeltaRing(
            length=15,
            values=places[0],
            writes=places[1],
            decays=places[2],
            betas=places[3],
            groups=groups,
            dtype=torch.bfloat16,
        )
        table = meta(batch, ring.num_frames(pages), dtype=torch.int32)
        shared = meta(batch, groups, rank, dtype=torch.float32)
        scalar = meta(batch, heads, dtype=torch.float32)
        value = meta(batch, heads, head_dim, dtype=torch.float32)
        pending = meta(batch, dtype=torch.int32)
        gdn_replay_step_triton(shared, value, scalar, scalar, shared, pages, ring, table, pending)

    return run


def mamba1(head_dim: int, rank: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(1, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, 1, rank, dtype=torch.bfloat16)
        x = meta(batch, 1, head_dim, dtype=torch.bfloat16)
        rate = meta(1, head_dim, rank, dtype=torch.float32)
        mamba1_step_triton(x, x, rate, shared, shared, pages, table, table)

    return run


def conv(
    channels: int,
    order: tuple[str, ...],
    *,
    groups: int = 0,
    group_size: int = 128,
    rank: int = 0,
    batch: int = 64,
):
    """A convolution, with projections of what writes and reads the state."""

    def run() -> None:
        pages = ConvPages(
            arena=meta(2**30, dtype=torch.uint8),
            frame_bytes=65536,
            place=StatePlace.packed(65536),
            channels=channels,
            columns=3,
            dtype=torch.bfloat16,
        )
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        basis = meta(groups, group_size, rank, dtype=torch.bfloat16)
        bases = [basis if name in order else None for name in ("write", "read")]
        conv_update_project_triton(
            meta(batch, channels, dtype=torch.bfloat16),
            meta(channels, 4, dtype=torch.bfloat16),
            meta(channels, dtype=torch.bfloat16),
            pages,
            table,
            table,
            order,
            groups,
            group_size if groups else 0,
            *bases,
            order[0] == "read",
        )

    return run


def copy() -> None:
    arena = meta(2**30, dtype=torch.uint8)
    frames = meta(64, dtype=torch.int32)
    pool_copy_triton(arena, arena, frames, frames, 65536)
