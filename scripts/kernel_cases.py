"""The kernels and sizes that `compile_kernels` compiles: those of real models at 4x and 8x."""

from __future__ import annotations

import torch

from cacheshrink_hybrid.kernels.conv_update_project import ConvPages
from cacheshrink_hybrid.kernels.conv_update_project.kernel import conv_update_project_triton
from cacheshrink_hybrid.kernels.gdn_step.kernel import gdn_step_triton
from cacheshrink_hybrid.kernels.latent_append.kernel import latent_append_triton
from cacheshrink_hybrid.kernels.latent_decode import LatentRead
from cacheshrink_hybrid.kernels.latent_decode.kernel import latent_decode_triton
from cacheshrink_hybrid.kernels.mamba1_step.kernel import mamba1_step_triton
from cacheshrink_hybrid.kernels.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.pool_copy.kernel import pool_copy_triton
from cacheshrink_hybrid.kernels.row_layout import LEVELS_SIZE, RowLayout
from cacheshrink_hybrid.kernels.ssd_step.kernel import ssd_step_triton
from cacheshrink_hybrid.kernels.state_pages import StatePages, StatePlace, StateSegment

from .compile_kernels import ASYNC_COPY, MATRIX, WIDE_LOAD, WIDE_STORE, Case, meta

LAYOUTS = {
    "float16": RowLayout.uniform(128, torch.float16, alignment=16),
    "bfloat16": RowLayout.uniform(128, torch.bfloat16, alignment=16),
    "e4m3": RowLayout.uniform(128, torch.float8_e4m3fn, alignment=16),
    "8": RowLayout.of_bits([(128, 8)], alignment=16),
    "4": RowLayout.of_bits([(128, 4)], alignment=16),
    "mixed": RowLayout.of_bits([(32, 8), (96, 4), (64, 2)], alignment=16),
    "float16-512": RowLayout.uniform(512, torch.float16, alignment=16),
    "8-512": RowLayout.of_bits([(512, 8)], alignment=16),
    "4-512": RowLayout.of_bits([(512, 4)], alignment=16),
}


def rows_of(layout: RowLayout, *, frame_tokens: int = 64) -> PagedRows:
    frame_bytes = -(-frame_tokens * layout.row_bytes // 256) * 256
    return PagedRows(
        arena=meta(1024 * frame_bytes, dtype=torch.uint8),
        layout=layout,
        levels=None if not layout.uses_tables else meta(LEVELS_SIZE, dtype=torch.float32),
        frame_bytes=frame_bytes,
        frame_tokens=frame_tokens,
    )


def absorb(name: str, *, dtype: torch.dtype = torch.bfloat16, heads: int = 32):
    """Decoding with absorbed queries, all of the row as keys and as values."""

    def run() -> None:
        rows = rows_of(LAYOUTS[name])
        rank = rows.layout.num_channels
        latent_decode_triton(
            meta(8, 1, heads, rank, dtype=dtype),
            rows,
            meta(8, 512, dtype=torch.int32),
            meta(8, dtype=torch.int32),
            read=LatentRead(key_rank=rank, value_rank=rank, scale=0.1),
            offset=None,
            query_lens=None,
            num_splits=None,
        )

    return run


def append(name: str):
    def run() -> None:
        rows = rows_of(LAYOUTS[name])
        latent_append_triton(
            meta(64, rows.layout.num_channels, dtype=torch.bfloat16),
            rows,
            meta(64, dtype=torch.int64),
            center=None,
            reach=None if rows.layout.head_byte is None else meta(rows.layout.num_channels),
        )

    return run


def pages_of(heads: int, head_dim: int, rank: int, code: str) -> StatePages:
    """States of a layer, row by row over frames of 64 KiB."""
    segment = StateSegment(heads=tuple(range(heads)), rank=rank, code=code)
    return StatePages(
        arena=meta(2**30, dtype=torch.uint8),
        frame_bytes=65536,
        place=StatePlace.packed(65536),
        head_dim=head_dim,
        segments=(segment,),
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
            meta(heads, dtype=torch.float32),
            meta(heads, dtype=torch.float32),
        )

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


def mamba1(head_dim: int, rank: int, code: str, *, batch: int = 64):
    def run() -> None:
        pages = pages_of(1, head_dim, rank, code)
        table = meta(batch, pages.num_frames, dtype=torch.int32)
        shared = meta(batch, 1, rank, dtype=torch.bfloat16)
        x = meta(batch, 1, head_dim, dtype=torch.bfloat16)
        rate = meta(1, head_dim, rank, dtype=torch.float32)
        mamba1_step_triton(x, x, rate, shared, shared, pages, table, table, None)

    return run


def conv(channels: int, groups: int, group_size: int, rank: int, *, batch: int = 64):
    """Mamba-2's convolution, with projections of B and C."""

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
        conv_update_project_triton(
            meta(batch, channels, dtype=torch.bfloat16),
            meta(channels, 4, dtype=torch.bfloat16),
            meta(channels, dtype=torch.bfloat16),
            pages,
            table,
            table,
            ("values", "write", "read"),
            groups,
            group_size,
            basis,
            basis,
            False,
        )

    return run


def copy() -> None:
    arena = meta(2**30, dtype=torch.uint8)
    frames = meta(64, dtype=torch.int32)
    pool_copy_triton(arena, arena, frames, frames, 65536)


STREAM = (WIDE_LOAD, WIDE_STORE)

CASES = [
    *(
        Case(f"latent_decode-absorb-{name}", absorb(name), needs=(MATRIX, WIDE_LOAD, ASYNC_COPY))
        for name in LAYOUTS
    ),
    Case("latent_decode-absorb-8-64heads", absorb("8", heads=64), needs=(MATRIX, WIDE_LOAD)),
    Case("latent_decode-absorb-float16-16heads", absorb("float16", heads=16), needs=(MATRIX,)),
    Case("latent_decode-absorb-8-float32", absorb("8", dtype=torch.float32), hot=False),
    Case("latent_append-mixed", append("mixed")),
    Case("latent_append-e4m3", append("e4m3")),
    # Nemotron-H at full and half rank, Falcon-H1, Qwen3-Next, Jamba.
    *(
        Case(f"ssd_step-128x64x{rank}-{code}", ssd(128, 64, rank, 8, code), needs=STREAM)
        for rank, code in [(128, "float32"), (128, "float16"), (64, "float16"), (64, "int8")]
    ),
    Case("ssd_step-24x128x128-float16", ssd(24, 128, 128, 2, "float16"), needs=STREAM),
    *(
        Case(f"gdn_step-32x128x{rank}-{code}", gdn(32, 128, rank, 16, code), needs=STREAM)
        for rank, code in [(128, "float32"), (64, "float16"), (64, "int8")]
    ),
    Case("conv_update_project-10240-128x64", conv(10240, 8, 128, 64)),
    Case("pool_copy", copy, needs=STREAM),
    Case("mamba1_step-8192x16-bfloat16", mamba1(8192, 16, "bfloat16"), needs=STREAM),
]
